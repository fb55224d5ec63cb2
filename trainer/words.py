"""Numbers in the words people use."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as "40 s", "8 min" or "1 h 05 min"."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
