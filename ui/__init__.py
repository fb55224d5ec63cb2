"""The page and the command line: they read a form or flags, call the trainer, and show the result."""
