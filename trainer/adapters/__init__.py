"""Adapters: what is trained instead of the model. `table` says which there are, `place` puts them on, `layer` is one."""
