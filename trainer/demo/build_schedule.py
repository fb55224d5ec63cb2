"""Learning rate from the elapsed fraction of a time budget, so that it ends at zero whatever the machine's speed."""

import math


def cosine_factor(fraction: float, step: int, *, warmup_steps: int) -> float:
    """Cosine from 1 at fraction 0 to 0 at fraction 1, times a linear warm-up over the first steps."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, fraction))) * min(1.0, (step + 1) / warmup_steps)
