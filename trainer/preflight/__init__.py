"""Everything that can be found out about a run before it starts: what is wrong, whether it fits, how long it takes."""
