"""Seeds derived from what they are for, so that drawing a preview or resuming a run changes nothing.

Nothing in training reads global random state that a step did not set itself.
"""

from __future__ import annotations

import hashlib
import random


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from e.g. (run seed, "noise", step, sample id). Different parts give independent seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derive_random(*parts: int | str) -> random.Random:
    """A Python random generator seeded by `derive_seed`."""
    return random.Random(derive_seed(*parts))  # noqa: S311 - order and dropout, no secrets
