"""The settings of a run: the schema, and reading and writing them as TOML or flags."""
