"""Base models: what a file is, and what is in the library. Imports no torch."""
