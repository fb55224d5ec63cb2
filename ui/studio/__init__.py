"""The parts of the Dataset tab: one module for each panel with the functions that its script calls."""
