"""Writes the trained LoRA as a file that other programs load, and proves it by loading the file with diffusers.

kohya's key names are what ComfyUI, A1111 and most tools read; diffusers' names are for diffusers and peft.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from security.roots import replace_file
from trainer.adapters.layer import adapted_layers
from trainer.config.schema import KeyFormat, LoraTargets, SavePrecision
from trainer.families.base import Components, ModelFamily, UnusableModel
from trainer.metadata import IMPLEMENTATIONS, ExportFacts, build_metadata, refuse_secret_entries

__all__ = [
    "DamagedExport",
    "ExportFacts",
    "LoraLayer",
    "build_metadata",
    "lora_layers",
    "save_lora",
    "to_diffusers",
    "to_kohya",
    "verify_export",
]

ADAPTER = "default"
"""peft's name of the one adapter that is trained."""
DTYPES = {SavePrecision.FP16: torch.float16, SavePrecision.BF16: torch.bfloat16, SavePrecision.FP32: torch.float32}
ROUNDING_SLACK = 2.0
"""How many times half a unit in the last place a number may be off: the matrices are scaled in fp32 on both sides."""
LENGTH_BYTES = 8
"""A .safetensors file starts with the length of its header in this many bytes (little-endian)."""


class DamagedExport(UnusableModel):
    """A written LoRA file does not give back what was trained."""


@dataclass(frozen=True)
class LoraLayer:
    """One adapted layer: `down` (r, in, ...), `up` (out, r, ...). It adds alpha / rank * up @ down to the weight."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return len(self.down)

    def balanced(self) -> tuple[Tensor, Tensor]:
        """Both matrices in fp32 on the CPU, with half of the scale alpha / rank (its root) worked into each."""
        scale = (self.alpha / self.rank) ** 0.5
        return self.down.cpu().float() * scale, self.up.cpu().float() * scale


def lora_layers(part: nn.Module) -> dict[str, LoraLayer]:
    """The LoRA layers of a network, ours or those that diffusers loaded, by the name of the module that each changes."""
    from peft.tuners.lora import LoraLayer as PeftLayer

    layers = {}
    for name, layer in adapted_layers(part).items():
        tensors = layer.tensors()
        layers[name] = LoraLayer(tensors["lora_down.weight"], tensors["lora_up.weight"], alpha=float(tensors["alpha"]))
    for name, module in part.named_modules():
        if isinstance(module, PeftLayer) and ADAPTER in module.lora_A:
            down, up = module.lora_A[ADAPTER].weight.detach(), module.lora_B[ADAPTER].weight.detach()
            # The scale that is really applied, rather than what a config says it should be.
            layers[name] = LoraLayer(down, up, alpha=float(module.scaling[ADAPTER]) * len(down))
    return layers


def to_kohya(components: Components, family: ModelFamily) -> dict[str, Tensor]:
    """All LoRA tensors under kohya's names, with an `.alpha` for every layer."""
    state = {}
    for part, prefix in _parts_with_prefixes(components, family):
        for name, layer in lora_layers(part).items():
            full = family.kohya_denoiser_name(name, part) if part is components.denoiser else _with_text_model(name)
            key = f"{prefix}_{full.replace('.', '_')}"
            state[f"{key}.lora_down.weight"] = layer.down
            state[f"{key}.lora_up.weight"] = layer.up
            state[f"{key}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return state


def to_diffusers(components: Components, family: ModelFamily) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All LoRA tensors under diffusers' names, and the `lora_adapter_metadata` that diffusers writes beside them.

    The scale alpha / rank is worked into the matrices, half into each: readers that know no metadata (ComfyUI,
    diffusers before 0.35) take 1, and peft reads the same from the metadata, where alpha therefore equals rank.
    """
    state: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for prefix, part in components.modules().items():
        layers = lora_layers(part)
        is_denoiser = part is components.denoiser
        for name, layer in layers.items():
            full = name if is_denoiser else _with_text_model(name)
            state[f"{prefix}.{full}.lora_A.weight"], state[f"{prefix}.{full}.lora_B.weight"] = layer.balanced()
        if layers:
            every = LoraTargets.ATTENTION_FEED_FORWARD_PROJECTION
            known = family.lora_targets(every) if is_denoiser else family.text_encoder_targets()
            metadata |= {f"{prefix}.{key}": value for key, value in _peft_config(layers, known).items()}
    return state, metadata


def _peft_config(layers: dict[str, LoraLayer], known_endings: list[str]) -> dict[str, Any]:
    # Endings rather than full names: transformers 5 dropped a prefix that older versions have in their module names.
    endings = [ending for ending in known_endings if any(f".{name}".endswith(f".{ending}") for name in layers)]
    ranks = {layer.rank for layer in layers.values()}
    assert len(ranks) == 1, f"one rank for all layers is expected, found {sorted(ranks)}"
    rank = ranks.pop()
    return {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(endings), "bias": "none"}


def save_lora(
    components: Components,
    family: ModelFamily,
    path: Path,
    *,
    key_format: KeyFormat,
    precision: SavePrecision,
    metadata: dict[str, str],
) -> int:
    """Writes the LoRA to `path` in one step (a reader sees the old file or the whole new one); returns its bytes.

    Raises DamagedExport for NaN or Inf in the LoRA, also such as the file's precision would make, and RefusedConfig for
    metadata with a token in it.
    """
    from safetensors.torch import save

    refuse_secret_entries(metadata, path.name)
    entries = dict(metadata)
    if key_format is KeyFormat.KOHYA:
        state = to_kohya(components, family)
    elif key_format is KeyFormat.DIFFUSERS:
        state, adapter = to_diffusers(components, family)
        entries["lora_adapter_metadata"] = json.dumps(adapter, sort_keys=True)
    else:
        raise ValueError(f"One file has one key format, not {key_format!r}. Call this once per format.")
    entries |= {"format": "pt", "modelspec.implementation": IMPLEMENTATIONS[key_format]}
    tensors = {key: _stored(key, value, DTYPES[precision]) for key, value in sorted(state.items())}
    broken = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise DamagedExport(
            f"{len(broken)} tensors of the LoRA hold NaN or Inf, {broken[0]} first: the training went astray or "
            f"save.precision {precision.value} is too narrow. Lower the learning rate, or save as fp32."
        )
    digest = _tensor_hash(save(tensors))
    entries |= {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    data = save(tensors, metadata=entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
    return len(data)


def _stored(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    # An alpha of 0.7 rounded to fp16 would scale its whole layer wrongly; one fp32 number costs nothing.
    return value.to("cpu", torch.float32 if key.endswith(".alpha") else dtype).contiguous()


def _tensor_hash(data: bytes) -> str:
    """SHA-256 of the tensors' bytes without the header, as modelspec and kohya's tools take it."""
    start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    return hashlib.sha256(data[start:]).hexdigest()


def verify_export(path: Path, components: Components, family: ModelFamily, precision: SavePrecision) -> int:
    """Loads a LoRA file with diffusers and compares it with what is in memory; returns the number of layers.

    Every layer must be found under its name, no key may be left over, and its two matrices with their scale must be the
    trained ones up to rounding. Raises DamagedExport.
    """
    trained = _named_layers(components.modules())
    found = _load_with_diffusers(path, components, family)
    unmatched = sorted(found.keys() ^ trained.keys())
    if unmatched:
        raise DamagedExport(
            f"{path.name} was written, but {len(unmatched)} of its {len(trained)} layers don't match on reading, "
            f"{unmatched[0]} first. This is a fault of Safelight; the training itself is safe in its checkpoint."
        )
    for name, layer in trained.items():
        for expected, read in zip(layer.balanced(), found[name].balanced(), strict=True):
            if expected.shape != read.shape or not _equal_but_for_rounding(expected, read, layer, DTYPES[precision]):
                raise DamagedExport(
                    f"{path.name} was written, but {name} reads back with other numbers than were trained. "
                    "The disk may be damaged: free some space or use another one, and save again."
                )
    return len(trained)


def _equal_but_for_rounding(expected: Tensor, read: Tensor, layer: LoraLayer, dtype: torch.dtype) -> bool:
    """Whether two balanced matrices differ by no more than storing one of them in `dtype` explains."""
    limits = torch.finfo(dtype)
    # Half a unit in the last place; tiny numbers lose up to half of the smallest one there is, also before scaling.
    smallest = limits.smallest_normal * limits.eps * max(1.0, (layer.alpha / layer.rank) ** 0.5)
    bound = ROUNDING_SLACK * (expected.abs() * limits.eps + smallest) / 2
    return bool(((expected - read).abs() <= bound).all())


def _load_with_diffusers(path: Path, components: Components, family: ModelFamily) -> dict[str, LoraLayer]:
    """Loads the file by the steps of diffusers' `load_lora_weights` into empty networks of the same configs."""
    pipeline = family.pipeline_class()
    state, alphas, metadata = pipeline.lora_state_dict(
        str(path.parent),
        weight_name=path.name,
        unet_config=components.denoiser.config,
        return_lora_metadata=True,
        local_files_only=True,
    )
    skeletons = {name: _skeleton(part) for name, part in components.modules().items() if name != "vae"}
    for name, part in skeletons.items():
        options = {"adapter_name": ADAPTER, "metadata": metadata}
        if not any(key.startswith(f"{name}.") for key in state):
            continue
        if name == "unet":
            pipeline.load_lora_into_unet(state, alphas, part, **options)
        else:
            pipeline.load_lora_into_text_encoder(state, alphas, part, prefix=name, **options)
    return _named_layers(skeletons)


def _skeleton(part: Any) -> Any:
    """A network of the same class and config, each of its weights one zero seen as a whole tensor: it takes no memory."""
    with torch.device("meta"):
        empty = part.from_config(part.config) if hasattr(part, "from_config") else type(part)(part.config)
    for module in empty.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros(()).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros((), dtype=buffer.dtype).expand(buffer.shape))
    return empty


def _named_layers(parts: dict[str, nn.Module]) -> dict[str, LoraLayer]:
    return {f"{prefix}.{name}": layer for prefix, part in parts.items() for name, layer in lora_layers(part).items()}


def _parts_with_prefixes(components: Components, family: ModelFamily) -> list[tuple[nn.Module, str]]:
    prefixes = [family.key_naming.denoiser, *family.key_naming.text_encoders]
    parts = [components.denoiser, *components.text_encoders]
    return [(part, prefix) for part, prefix in zip(parts, prefixes, strict=True) if part is not None]


def _with_text_model(name: str) -> str:
    """A text encoder's module name as every LoRA file has it; transformers 5 dropped the prefix from CLIPTextModel."""
    return name if name.startswith("text_model.") else f"text_model.{name}"
