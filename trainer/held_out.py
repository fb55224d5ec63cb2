"""Takes the held-out pictures of a run out of its datasets, or checks the folder that it names, before anything is encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from security.images import open_image
from trainer import events
from trainer.config.schema import TrainConfig
from trainer.dataset.cache import TensorCache, cache_key, cached
from trainer.dataset.looks import MEASURES_VERSION
from trainer.dataset.manifest import earlier_sides
from trainer.dataset.measures import fingerprint_of
from trainer.dataset.scan import Picture
from trainer.dataset.similar import Fingerprint
from trainer.dataset.sources import Source
from trainer.dataset.splitting import Divided, FingerprintOf, divide, find_relatives, twins
from trainer.events import Event

MAX_NAMED = 3
"""So many pictures are named in a warning."""


def hold_out(
    config: TrainConfig,
    scanned: Sequence[tuple[Source, list[Picture]]],
    separate: list[Picture],
    *,
    manifest_path: Path,
    cache_dir: Path,
    emit: Callable[[Event], None],
    progress: Callable[[int, int], None],
) -> Divided:
    """What is trained and what is held out, by validation.split or as `separate`, the pictures of validation.folder.

    A run that goes on keeps the sides that its manifest tells. Raises SafelightError when nothing can be held out.
    """
    fingerprints = cached_fingerprints(TensorCache(cache_dir) if config.dataset.cache_latents else None)
    if config.validation.split == 0:
        trained = [picture for _, pictures in scanned for picture in pictures]
        if separate and (found := twins(separate, trained, fingerprints)):
            emit(events.Warned(_twins_text(found)))
        return Divided([(source, list(pictures)) for source, pictures in scanned], [(0, one) for one in separate])
    earlier = earlier_sides(manifest_path)
    if earlier is not None and not any(earlier.values()):
        emit(
            events.Warned(
                "validation.split was switched on after this run had begun: the pictures that it holds out from now on may "
                "have been trained before, so their loss says little. Start a new run to measure it."
            )
        )
        earlier = None
    return divide(
        scanned,
        lambda pictures: find_relatives(pictures, fingerprints, progress),
        share=config.validation.split,
        seed=config.training.seed,
        earlier=earlier,
    )


def _twins_text(names: list[str]) -> str:
    named = ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
    return (
        f"{len(names)} of the held-out pictures look like pictures that are trained (the same, mirrored or a part): {named}. "
        "They are learned by heart with those, so the held-out loss is better than it should be. Take them out of "
        "validation.folder, or let validation.split choose."
    )


def cached_fingerprints(cache: TensorCache | None) -> FingerprintOf:
    """Fingerprints out of the pictures' pixels, kept by content."""

    def of(picture: Picture) -> Fingerprint:
        def make() -> dict[str, torch.Tensor]:
            data = fingerprint_of(open_image(picture.path)).to_bytes()
            return {"fingerprint": torch.frombuffer(bytearray(data), dtype=torch.uint8)}

        key = cache_key("fingerprint", MEASURES_VERSION, picture.content_hash)
        return Fingerprint.from_bytes(cached(cache, key, make)["fingerprint"].numpy().tobytes())

    return of
