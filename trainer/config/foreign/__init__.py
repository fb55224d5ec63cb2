"""Settings of other programs: reading theirs with a report of what became of each, and writing ours for sd-scripts."""
