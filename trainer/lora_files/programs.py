"""Which programs load a LoRA file whole, told from each program's own rules for keys, written down apart from our reader.

The rules are those of ComfyUI (comfy/lora.py and comfy/weight_adapter, 2026), A1111 1.10 and Forge (extensions-builtin/Lora and
backend/patcher/lora.py) and diffusers 0.42 (loaders/lora_conversion_utils.py). Programs read files of published models, so the
names are those of real SD 1.x and SDXL U-Nets and text encoders. Imports no torch.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.lora_files.layouts import LAYOUTS, Layout, text_modules, unet_modules
from trainer.lora_files.names import UNET

if TYPE_CHECKING:
    from trainer.lora_files.file import LoraFile
    from trainer.lora_files.layers import Layer

COMFYUI, A1111, FORGE, DIFFUSERS = "comfyui", "a1111", "forge", "diffusers"
_FORGE_PATIENCE = 12
"""Forge leaves a whole file out when more of its keys than this match nothing."""

_LORA_PAIRS = (".lora_up.weight", ".lora_down.weight", ".lora_mid.weight")
_PEFT_PAIRS = (
    *(
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora.down.weight",
        ".lora.up.weight",
        "_lora.down.weight",
        "_lora.up.weight",
    ),
    *(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
_PEFT_DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
_PRODUCTS = (
    *(f".hada_{one}" for one in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f".lokr_{one}" for one in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    *(".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"),
)
_DIFFERENCES = (".diff", ".diff_b", ".w_norm", ".b_norm")
_BESIDE = (".alpha", ".dora_scale")
_ROTATIONS = (".oft_blocks", ".rescale")

Reason = tuple[re.Pattern[str], str]
_WORDS: Reason = (re.compile(r"^bundle_emb\."), "it takes trained words from files of their own only")
_MAGNITUDES: Reason = (re.compile(r"\.lora_magnitude_vector"), "it does not know peft's name for DoRA's lengths")
_ATTENTION: Reason = (
    re.compile(r"\.to_(q|k|v|out\.0)\."),
    "it knows other names for attention layers than diffusers and peft",
)


OWN_LAYOUT = (
    "The base has a layout of its own, so its LoRAs work with it alone: in Safelight, and where diffusers loads both."
)


@dataclass(frozen=True)
class Limit:
    """A layer that a program reads and applies in another way, or not: which, and why."""

    holds: Callable[[Layer], bool]
    reason: str


@dataclass(frozen=True)
class Program:
    """One program. `stems`: what its keys may begin with, for a family; `ends`: what they may end with.

    `limits` and `judge`: what it finds and applies in another way, by layer and by file. `reasons`: why keys are left out, the
    first that fits. `whole_only`: so many keys may be left out before it refuses the
    file, None if it never does.
    """

    name: str
    label: str
    stems: Callable[[str], frozenset[str]]
    ends: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    judge: Callable[[LoraFile], str] = lambda file: ""
    reasons: tuple[Reason, ...] = ()
    whole_only: int | None = None
    reads_words: bool = False

    def reads(self, key: str, family: str) -> bool:
        """Whether the program finds the layer that a key belongs to."""
        if key.startswith("bundle_emb."):
            return self.reads_words
        stems = self.stems(family)
        return any(key.endswith(end) and key.removesuffix(end) in stems for end in self.ends)

    def why(self, key: str) -> str:
        """Why it does not read a key."""
        return next((reason for pattern, reason in self.reasons if pattern.search(key)), "it does not know such names")


def loads_in(file: LoraFile) -> dict[str, str]:
    """For each program "" when it loads a file that was read from disk whole, else the sentence why not."""
    if _has_own_layout(file):
        plain = all(layer.kind == "lora" for layer in file.layers.values()) and not file.embeddings
        return {name: "" if name == DIFFUSERS and plain else OWN_LAYOUT for name in PROGRAMS}
    return {program.name: _fault(program, file) for program in PROGRAMS.values()}


def _has_own_layout(file: LoraFile) -> bool:
    """Whether a file is for a U-Net with layers in other places than its family's usual one, such as the embedded model."""
    usual = unet_modules(LAYOUTS[file.family]) if file.family in LAYOUTS else {}
    return bool(usual) and any(place.part == UNET and place.module not in usual for place in file.layers)


def programs_in_words(faults: dict[str, str]) -> str:
    """The programs that load a file whole, as a list in words; "nothing whole" if there are none."""
    good = [PROGRAMS[name].label for name, fault in faults.items() if not fault]
    return f"{', '.join(good[:-1])} and {good[-1]}" if len(good) > 1 else (good or ["nothing whole"])[0]


def told_in_words(faults: dict[str, str]) -> str:
    """One or more sentences: where a file loads, and why not elsewhere; an empty text if nothing is known."""
    start = [f"Loads whole in {programs_in_words(faults)}."] if not all(faults.values()) else []
    return " ".join([*start, *dict.fromkeys(fault for fault in faults.values() if fault)])


def _fault(program: Program, file: LoraFile) -> str:
    unread = [key for key in file.shapes if not program.reads(key, file.family)]
    if unread:
        first, total = unread[0], len(file.shapes)
        if (
            program.name == DIFFUSERS
            and not _as_kohya(file)
            and any(key.startswith(_KOHYA_STARTS) for key in file.shapes)
        ):
            only = "it takes kohya's names only where all keys are so"
            return f"{program.label} reads none of its tensors: {only}, not beside {first}."
        if program.name == DIFFUSERS and _as_kohya(file) and not all(key.endswith(".dora_scale") for key in unread):
            return f"{program.label} refuses the file for {len(unread)} of {total} tensors, {first} first: {program.why(first)}."
        if len(unread) == total:
            return f"{program.label} reads none of its tensors ({first} first): {program.why(first)}."
        if program.whole_only is not None and len(unread) > program.whole_only:
            return f"{program.label} refuses the file for {len(unread)} of {total} tensors, {first} first: {program.why(first)}."
        return f"{program.label} leaves out {len(unread)} of {total} tensors, {first} first: {program.why(first)}."
    for limit in program.limits:
        layers = [place for place, layer in file.layers.items() if limit.holds(layer)]
        if layers:
            more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
            return f"{program.label} does not apply {layers[0].module}{more} as meant: {limit.reason}."
    return program.judge(file)


def _as_kohya(file: LoraFile) -> bool:
    return all(key.startswith(_KOHYA_STARTS) for key in file.shapes)


# ---- ComfyUI and Forge, whose table of names is ComfyUI's ----


@functools.cache
def _comfyui_stems(family: str) -> frozenset[str]:
    layout = LAYOUTS[family]
    return frozenset([*_comfyui_unet(layout), *_comfyui_text(layout)])


def _comfyui_unet(layout: Layout) -> Iterator[str]:
    for name, original in unet_modules(layout).items():
        flat = name.replace(".", "_")
        yield from (f"lora_unet_{original.replace('.', '_')}", f"diffusion_model.{original}")
        yield from (f"lora_unet_{flat}", f"lycoris_{flat}")
        # The names of diffusers' attention processors of 2023; peft's names lack the `.processor`.
        processor = name.replace(".to_", ".processor.to_").removesuffix(".0" if name.endswith(".to_out.0") else "\0")
        yield from (processor, f"unet.{processor}")


def _comfyui_text(layout: Layout) -> Iterator[str]:
    for number, depth in enumerate(layout.text_layers):
        for module in text_modules(depth):
            flat = module.replace(".", "_")
            if number == 0:
                yield f"lora_te_{flat}"
            yield from (f"lora_te{number + 1}_{flat}", f"text_encoder{'' if number == 0 else '_2'}.{module}")
            yield f"text_encoders.clip_{'lg'[number]}.transformer.{module}"


@functools.cache
def _forge_stems(family: str) -> frozenset[str]:
    return frozenset(stem for stem in _comfyui_stems(family) if not stem.startswith("text_encoders."))


# ---- A1111 ----


@functools.cache
def _a1111_stems(family: str) -> frozenset[str]:
    layout = LAYOUTS[family]
    stems = [f"lora_unet_{original.replace('.', '_')}" for original in unet_modules(layout).values()]
    for name, original in unet_modules(layout).items():
        if _a1111_original(name) == original:
            stems.append(f"lora_unet_{name.replace('.', '_')}")
    for number, depth in enumerate(layout.text_layers):
        # SDXL's first text encoder is only known as te1, the one of SD 1.x by both names.
        prefixes = [f"lora_te{number + 1}_"] + (["lora_te_"] if len(layout.text_layers) == 1 else [])
        stems += [prefix + module.replace(".", "_") for prefix in prefixes for module in text_modules(depth)]
    return frozenset(stems)


def _a1111_original(name: str) -> str | None:
    """The original name that A1111 makes of diffusers' one: by the block numbering of SD 1.x, also for SDXL."""
    if name.startswith("add_embedding.") or name == "conv_norm_out":
        return None
    if match := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv", name):
        return f"output_blocks.{2 + int(match[1]) * 3}.{2 if int(match[1]) > 0 else 1}.conv"
    return unet_modules(LAYOUTS["sd15"]).get(name) or unet_modules(LAYOUTS["sdxl"]).get(name)


# ---- diffusers ----

_KOHYA_STARTS = ("lora_te_", "lora_unet_", "lora_te1_", "lora_te2_")


@functools.cache
def _diffusers_stems(family: str) -> frozenset[str]:
    layout = LAYOUTS[family]
    stems = []
    for name, original in unet_modules(layout).items():
        if "norm" in name.rsplit(".", 1)[-1]:
            continue  # peft puts no LoRA on norms
        # Of kohya's names it renames those of SDXL's sizes in the original numbering only.
        stems += [f"unet.{name}"] + ([] if "add_embedding" in name else [f"lora_unet_{name.replace('.', '_')}"])
        if ".to_" in name:
            processor = name.replace(".to_", ".processor.to_")
            stems += [f"unet.{processor}", f"unet.{processor.removesuffix('.0')}"]
        if layout.maps_original_names:
            stems.append(f"lora_unet_{original.replace('.', '_')}")
    for number, depth in enumerate(layout.text_layers):
        for module in text_modules(depth):
            stems += [f"text_encoder{'' if number == 0 else '_2'}.{module}"]
            stems += [f"lora_te{number + 1}_{module.replace('.', '_')}"]
            stems += [f"lora_te_{module.replace('.', '_')}"] if number == 0 else []
    return frozenset(stems)


def _rescales(layer: Layer) -> bool:
    return "rescale" in layer.tensors()


def _per_output(layer: Layer) -> bool:
    """Whether a DoRA has one length for each output. A square weight's lengths tell it by their own shape."""
    if layer.kind != "dora":
        return False
    magnitude, shape = layer.tensors()["dora_scale"], layer.shape or ()
    return bool(magnitude.shape[0] == shape[0] and magnitude.shape[0] > 1)


def _diffusers_alphas(file: LoraFile) -> str:
    """diffusers gives kohya's attention layers the alpha that most layers of their part have, whatever their own is."""
    if not _as_kohya(file):
        beside = next((key for key in file.shapes if key.endswith(".alpha")), "")
        return beside and f"diffusers refuses the file for {beside}: it takes no alpha with its own names."
    wrong = []
    for part in dict.fromkeys(place.part for place in file.layers):
        alphas = {module: layer.alpha for module, layer in file.part(part).items()}
        counted = Counter(alphas.values())
        usual = counted.most_common(1)[0][0]
        wrong += [module for module, alpha in alphas.items() if alpha != usual and (part != "unet" or ".to_" in module)]
    if not wrong:
        return ""
    return (
        f"diffusers gives {len(wrong)} layers, {wrong[0]} first, another strength than they have: it takes one alpha for all "
        "attention layers of kohya's files. Use the file with diffusers' names there."
    )


PROGRAMS: dict[str, Program] = {
    program.name: program
    for program in (
        Program(
            COMFYUI,
            "ComfyUI",
            _comfyui_stems,
            (*_LORA_PAIRS, *_PEFT_PAIRS, *_PEFT_DEFAULT, *_PRODUCTS, *_ROTATIONS, *_DIFFERENCES, *_BESIDE),
            limits=(
                Limit(
                    lambda layer: layer.kind == "oft" and _rescales(layer),
                    "it reads the scales beside OFT's blocks and leaves them out",
                ),
                Limit(
                    lambda layer: layer.kind in ("oft", "boft") and bool(layer.alpha),
                    "it takes the limit of a rotation without the number of outputs that belongs to it",
                ),
                Limit(
                    _per_output,
                    "DoRA's lengths are given for each output, and there it divides by the length of the base weight alone",
                ),
            ),
            reasons=(_WORDS, _MAGNITUDES, _ATTENTION),
        ),
        Program(
            A1111,
            "A1111",
            _a1111_stems,
            (*_LORA_PAIRS, ".lora_A.weight", ".lora_B.weight", *_PRODUCTS, *_ROTATIONS, *_DIFFERENCES, *_BESIDE),
            limits=(
                Limit(
                    _per_output,
                    "DoRA's lengths are given for each output, and it takes them for lengths for each input",
                ),
            ),
            reasons=((re.compile(r"^[a-z_0-9]+\.[a-z_0-9]+\."), "it knows kohya's names only, which have no dots"),),
            reads_words=True,
        ),
        Program(
            FORGE,
            "Forge",
            _forge_stems,
            (*_LORA_PAIRS, *_PEFT_PAIRS, *_PRODUCTS, *_DIFFERENCES, *_BESIDE),
            limits=(
                Limit(
                    _per_output,
                    "DoRA's lengths are given for each output, and there it divides by the length of the base weight alone",
                ),
            ),
            reasons=(
                _WORDS,
                _MAGNITUDES,
                (re.compile(r"\.(oft_blocks|rescale)$"), "it has no reader for OFT and BOFT"),
                _ATTENTION,
            ),
            whole_only=_FORGE_PATIENCE,
        ),
        Program(
            DIFFUSERS,
            "diffusers",
            _diffusers_stems,
            (
                *_LORA_PAIRS[:2],
                *_PEFT_PAIRS,
                *_PEFT_DEFAULT,
                ".lora_magnitude_vector",
                ".lora_magnitude_vector.weight",
                ".alpha",
            ),
            judge=_diffusers_alphas,
            reasons=(
                (re.compile(r"\.dora_scale$"), "it drops DoRA's lengths, so that the rest does not fit"),
                (re.compile(r"\.(hada|lokr)_|\.oft_blocks$"), "it has no reader for LoHa, LoKr, OFT and BOFT"),
                (re.compile(r"\.lora_mid\."), "it has no reader for convolutions in Tucker form"),
                (re.compile(r"\.diff|_norm$"), "it has no reader for differences of whole weights"),
                _WORDS,
            ),
        ),
    )
}
"""The programs in the order in which they are told."""
