"""Taggers and captioners: networks that look at a picture and say what is in it, and the task that writes captions."""
