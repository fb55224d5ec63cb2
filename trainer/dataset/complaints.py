"""What is wrong with the pictures of a run, though they can be trained: told by a check and at the run's start alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trainer.dataset.batches import PlacedPicture


def picture_complaints(placed: Sequence[PlacedPicture], batch_size: int) -> list[tuple[str, str]]:
    """(setting, sentence) of each complaint; the setting is "" where none mends it."""
    found: list[tuple[str, str]] = []
    uncut = [one for one in placed if one.crop_number == 0]
    placed = [one for one in uncut if one.is_first]
    bare = [one.picture.name for one in placed if not one.picture.has_caption]
    if bare:
        found.append(("", f"{len(bare)} pictures have no caption file (such as {bare[0]})."))
    held = Counter(one.placement.bucket for one in uncut)
    lone = [one.picture.name for one in uncut if held[one.placement.bucket] == 1]
    if lone and len(held) > 1 and batch_size > 1:
        text = (
            f"{len(lone)} pictures are alone in their size (such as {lone[0]}), so their batches hold one picture only. "
            "Set dataset.min_bucket_pictures to 2 to train them in the nearest other size."
        )
        found.append(("dataset.min_bucket_pictures", text))
    small = [one.picture.name for one in placed if one.placement.enlargement > 1.0]
    if small:
        text = (
            f"{len(small)} pictures are smaller than the size they are trained at (such as {small[0]}) and are enlarged. "
            "Take larger ones, or lower dataset.resolution."
        )
        found.append(("dataset.resolution", text))
    return found
