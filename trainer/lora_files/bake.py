"""Bakes LoRAs into a base model: a new model of the same form, whose weights hold what the LoRAs add.

Works tensor by tensor, so the memory it needs is that of the largest weight. The new model appears whole or not at all, and
is read once more before it is called good.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from security.errors import SafelightError
from security.roots import refuse_full_disk
from trainer.lora_files.changes import Layers, Unfit, title
from trainer.lora_files.checkpoint import Checkpoint, Stored
from trainer.lora_files.names import Place
from trainer.lora_files.placing import copy_file, folder_beside, refuse_taken, take_away
from trainer.lora_files.streaming import tensor_bytes, write_weights
from trainer.models.files import model_parts
from trainer.tasks import TaskControl

PROOFS = 12
"""Modules, spread over the model, whose weights are worked out once more from the two models on the disk."""
MERGED_FROM = "modelspec.merged_from"


@dataclass(frozen=True)
class Added:
    """One LoRA that is baked in: its name, its layers, differences of biases, and its weight."""

    name: str
    layers: Layers
    biases: Mapping[Place, Tensor]
    weight: float


@dataclass
class Baked:
    """The new model: where it lies, how many modules changed, and the share of the change that rounding has left.

    `num_bytes`: what was written.
    """

    path: Path
    num_bytes: int = 0
    modules: int = 0
    asked: float = 0.0
    lost: float = 0.0

    @property
    def kept(self) -> float:
        """1 less the squared norm of what rounding to the model's format changed, as a share of that of the change."""
        return max(0.0, 1 - self.lost / self.asked) if self.asked else 1.0


@dataclass
class _Plan:
    """What is done to each tensor of each file."""

    weights: dict[tuple[Path, str], list[tuple[Place, Stored]]] = field(default_factory=lambda: defaultdict(list))
    biases: dict[tuple[Path, str], list[tuple[Place, Stored]]] = field(default_factory=lambda: defaultdict(list))


def bake(base: Checkpoint, added: Sequence[Added], target: Path, *, control: TaskControl | None = None) -> Baked:
    """Writes `base` with the LoRAs in it to `target`: a folder if it is one, else a .safetensors file.

    Every layer is computed from the base model's own weight, so the order of LoRAs does not matter. Raises Unfit for LoRAs
    of other models and numbers that the model's format can't hold, RefusedPath if `target` is there, SafelightError when
    the disk is too full. Nothing is left behind then.
    """
    refuse_taken(target)
    plan = _plan(base, added)
    parts = model_parts(base.path)
    refuse_full_disk(target.parent, parts)
    baked = Baked(target, modules=len({place for entries in plan.weights.values() for place, _ in entries}))
    work = _Pass(base, added, plan, baked, control, sum(file.stat().st_size for file in base.headers))
    if base.found.kind == "single_file":
        work.write(base.path, target)
    else:
        _bake_folder(base, target, parts, work)
    with Checkpoint(target) as result:
        _prove(base, result, added, plan)
    return baked


def _bake_folder(base: Checkpoint, target: Path, parts: list[Path], work: _Pass) -> None:
    with folder_beside(target) as temporary:
        for file in parts:
            copy = temporary / file.relative_to(base.path)
            if file in base.headers:
                copy.parent.mkdir(parents=True, exist_ok=True)
                work.write(file, copy)
            else:
                copy_file(file, copy)


class _Pass:
    """Writes the files of the new model one after the other."""

    def __init__(
        self,
        base: Checkpoint,
        added: Sequence[Added],
        plan: _Plan,
        baked: Baked,
        control: TaskControl | None,
        total: int,
    ) -> None:
        self.base, self.added, self.plan, self.baked = base, added, plan, baked
        self._control, self._total, self._before = control, total, 0

    def write(self, source: Path, target: Path) -> None:
        """One file with its changes."""
        header = self.base.headers[source]
        tensors = dict(sorted(header.tensors.items(), key=lambda item: item[1].start))
        written = write_weights(
            target,
            tensors,
            _metadata(header.metadata, self.base, self.added),
            lambda key: self._data(source, key),
            progress=self._progress,
        )
        self._before += written.num_bytes
        self.baked.num_bytes += written.num_bytes

    def _progress(self, done: int, _total: int) -> None:
        if self._control is not None:
            self._control.raise_if_cancelled()
            megabytes = 1 << 20
            self._control.progress(
                (self._before + done) // megabytes, self._total // megabytes, "Writing the model (MB)"
            )

    def _data(self, file: Path, key: str) -> Iterable[bytes]:
        reader = self.base.reader(file)
        weights, biases = self.plan.weights.get((file, key), ()), self.plan.biases.get((file, key), ())
        if not weights and not biases:
            return reader.chunks(key)
        stored = reader.tensor(key)
        whole = stored.float().clone()
        for place, where in weights:
            view = where.of(whole)
            view += _delta(self.added, place, view)
        for place, where in biases:
            view = where.of(whole)
            view += sum(one.weight * one.biases[place].float() for one in self.added if place in one.biases)
        rounded = whole.to(stored.dtype)
        if not bool(torch.isfinite(rounded.float()).all()):
            raise Unfit(
                f"{title((weights or biases)[0][0])} would hold numbers that {stored.dtype} can't: the LoRAs are too strong, or "
                "spoilt. Lower their weights."
            )
        self.baked.asked += float((whole - stored.float()).double().square().sum())
        self.baked.lost += float((whole - rounded.float()).double().square().sum())
        return [tensor_bytes(rounded)]


def _delta(added: Sequence[Added], place: Place, weight: Tensor) -> Tensor:
    """What all LoRAs add to one weight, each by its own weight, computed from the base model's."""
    total = torch.zeros_like(weight)
    for one in added:
        if place in one.layers:
            try:
                total += one.weight * one.layers[place].delta(weight).reshape(weight.shape)
            except ValueError as error:
                raise Unfit(f"{one.name} does not fit the model: {title(place)}: {error}.") from None
    return total


def _plan(base: Checkpoint, added: Sequence[Added]) -> _Plan:
    """Which tensors change. Raises Unfit for a LoRA with layers that the model has no place for."""
    plan = _Plan()
    for kind, places, entries in (
        ("layers", base.places, plan.weights),
        ("biases", base.biases, plan.biases),
    ):
        wanted: dict[Place, None] = {}
        for one in added:
            missing = [place for place in getattr(one, kind) if place not in places]
            if missing:
                raise Unfit(
                    f"{len(missing)} of {len(getattr(one, kind))} {kind} of {one.name} have no place in {base.name}, "
                    f"{title(missing[0])} first: the LoRA was made for another kind of model."
                )
            wanted |= dict.fromkeys(getattr(one, kind))
        for place in wanted:
            for stored in places[place]:
                entries[stored.file, stored.key].append((place, stored))
    if not plan.weights and not plan.biases:
        raise Unfit("The LoRAs change nothing.")
    return plan


def _metadata(old: Mapping[str, str], base: Checkpoint, added: Sequence[Added]) -> dict[str, str]:
    recipe = [{"name": one.name, "weight": one.weight} for one in added]
    merged = ", ".join([base.name, *(one.name for one in added)])
    return {**old, MERGED_FROM: merged, "safelight_baked": json.dumps({"base": base.name, "loras": recipe})}


def _prove(base: Checkpoint, result: Checkpoint, added: Sequence[Added], plan: _Plan) -> None:
    """Reads the new model as any reader would, and compares weights all over it with base plus change.

    Raises SafelightError: a fault of this program or of the disk, and the new model is deleted.
    """
    places = [place for entries in plan.weights.values() for place, _ in entries]
    same = result.found == base.found and {one: result.shape(one) for one in result.places} == {
        one: base.shape(one) for one in base.places
    }
    wrong = "" if same else "its parts"
    for place in places[:: max(1, len(places) // PROOFS)]:
        weight, got = base.weight(place), result.weight(place)
        expected = weight + _delta(added, place, weight)
        dtype = result.reader(result.places[place][0].file).tensor(result.places[place][0].key).dtype
        if not torch.equal(expected.to(dtype).float(), got):
            wrong = title(place)
    if wrong:
        take_away(result.path)
        raise SafelightError(
            f"The new model was written, but {wrong} reads back as something else, so it was deleted. The disk may be damaged."
        )
