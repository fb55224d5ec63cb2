"""Pictures to latents, each once: from the cache or by the VAE, held in memory or read from the cache at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from security.errors import SafelightError
from trainer.at_once import AtOnce, read_ahead
from trainer.config.choices import Switch
from trainer.dataset.batches import PlacedPicture
from trainer.dataset.cache import TensorCache, latents_key, load_pixels
from trainer.families.base import Components, ModelFamily, UnusableLatents
from trainer.memory.host import host_memory

Key = tuple[int, bool]
"""The place of a picture in its list, and whether it is mirrored."""
Report = Callable[[int, int], None]
"""Called with (done, total) after each item; may raise to end the work."""

MAPPED_SHARE = 1 / 8
"""Of the machine's memory: latents that need more are read from the disk. The base, the optimizer and other programs want
theirs, and the system keeps files that were read in whatever is left, so nothing is gained by holding more."""
LEAST_AHEAD = 2
"""Pictures that are read before the VAE asks for them: one that it can take at once, and one that is being read."""


@dataclass(frozen=True)
class MappedLatents(Mapping[Key, Tensor]):
    """Latents that lie in the cache and are mapped into memory for as long as a step needs them.

    `names` of their entries. `held`: those that found no room on the disk.
    """

    cache: TensorCache
    names: Mapping[Key, str]
    held: dict[Key, Tensor] = field(default_factory=dict)

    def __getitem__(self, key: Key) -> Tensor:
        if key in self.held:
            return self.held[key]
        found = self.cache.get(self.names[key])
        if found is None:
            raise SafelightError(
                "An encoded picture that this run reads from the cache is gone or damaged. Continue the run: it is encoded "
                "again. With speed.mapped_latents off, a run needs the cache only while it starts."
            )
        return found["latents"]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class PictureEncoder:
    """What turns pictures into latents, and what has to be known about where they go."""

    family: ModelFamily
    components: Components
    cache: TensorCache | None
    at_once: AtOnce
    mapped: bool = False

    def encode(self, placed: Sequence[PlacedPicture], flips: tuple[bool, ...], report: Report) -> Mapping[Key, Tensor]:
        """Latents (1, C, h, w) fp32 on the CPU. Flipped pictures are encoded, not mirrored latents.

        One that is in the cache is not encoded again, so what was interrupted goes on where it was.
        """
        fingerprint = self.components.model_files.fingerprint
        names = {
            (index, flip): latents_key(one, fingerprint, flip=flip)
            for index, one in enumerate(placed)
            for flip in flips
        }
        stored: dict[str, Tensor | None] = {}  # None: in the cache, and to be read from there
        missing: dict[int, list[bool]] = {}
        done = 0
        for index, one in enumerate(placed):
            for flip in flips:
                name = names[index, flip]
                if name in stored or self._find(one, name, stored):
                    continue
                stored[name] = None  # the same picture in two datasets is encoded once
                missing.setdefault(index, []).append(flip)
            if index not in missing:
                done += 1
                report(done, len(placed))
        for index in self._encode_missing(placed, names, missing, stored):
            missing.pop(index)
            report(len(placed) - len(missing), len(placed))
        held = {key: latents for key, name in names.items() if (latents := stored[name]) is not None}
        return MappedLatents(self.cache, names, held) if self.mapped and self.cache is not None else held

    def _find(self, one: PlacedPicture, name: str, stored: dict[str, Tensor | None]) -> bool:
        """Whether the cache has it; then it is checked, and held unless it is to be mapped."""
        found = self.cache.get(name) if self.cache is not None else None
        if found is None:
            return False
        if not torch.isfinite(found["latents"]).all():
            raise SafelightError(
                f"What the cache has of {one.picture.name} holds NaN or Inf, so the disk may be failing. Empty the "
                "cache of latents and start again."
            )
        # Cloned, because it is mapped from its file, and a system maps only some ten thousands of files at once.
        stored[name] = None if self.mapped else found["latents"].clone()
        return True

    def _encode_missing(
        self,
        placed: Sequence[PlacedPicture],
        names: Mapping[Key, str],
        missing: Mapping[int, list[bool]],
        stored: dict[str, Tensor | None],
    ) -> Iterator[int]:
        """Encodes what the cache lacks, bucket by bucket; gives the place of each picture that is done."""

        def read(index: int) -> list[tuple[Key, Tensor]]:
            pixels = load_pixels(placed[index].picture.path, placed[index].placement, flip=False)
            return [((index, flip), pixels.flip(-1) if flip else pixels) for flip in missing[index]]

        order = sorted(missing, key=lambda index: placed[index].placement.bucket)
        waiting = {index: len(flips) for index, flips in missing.items()}
        with closing(read_ahead(order, read, depth=max(LEAST_AHEAD, self.at_once.size))) as pictures:
            for group in self._grouped(pictures):
                latents = self.at_once.encode(group, lambda some: self._encode_some(placed, some))
                for (key, _), one in zip(group, latents, strict=True):
                    is_stored = self.cache is not None and self.cache.put(names[key], {"latents": one})
                    stored[names[key]] = None if self.mapped and is_stored else one
                    waiting[key[0]] -= 1
                    if not waiting[key[0]]:
                        yield key[0]

    def _grouped(self, pictures: Iterator[list[tuple[Key, Tensor]]]) -> Iterator[list[tuple[Key, Tensor]]]:
        """As many of one size as are encoded at once."""
        group: list[tuple[Key, Tensor]] = []
        for entry in (entry for picture in pictures for entry in picture):
            if group and entry[1].shape != group[0][1].shape:
                yield group
                group = []
            group.append(entry)
            if len(group) >= self.at_once.size:
                yield group
                group = []
        if group:
            yield group

    def _encode_some(self, placed: Sequence[PlacedPicture], some: Sequence[tuple[Key, Tensor]]) -> list[Tensor]:
        try:
            latents = self.family.encode_images(self.components, torch.cat([pixels for _, pixels in some]))
        except UnusableLatents as error:
            (index, _), _ = some[error.indices[0]]
            raise error.of_picture(placed[index].picture.name) from None
        return [one.clone() for one in latents.detach().cpu().split(1)]


def latents_bytes(
    family: ModelFamily, components: Components, placed: Sequence[PlacedPicture], flips: tuple[bool, ...]
) -> int:
    """Bytes that the latents of these pictures take."""
    buckets = [one.placement.bucket for one in placed]
    sizes = {bucket: 4 * prod(family.latent_shape(components, *bucket)) for bucket in set(buckets)}
    return len(flips) * sum(sizes[bucket] for bucket in buckets)


def are_mapped(setting: Switch, num_bytes: int) -> bool:
    """Whether latents of so many bytes are read from the cache at every step, instead of being held in memory."""
    if setting is Switch.AUTO:
        return num_bytes > MAPPED_SHARE * host_memory()[1]
    return setting is Switch.ON
