"""Faster ways to the same numbers. Each can be switched off by a setting, and is tested against the slow way."""
