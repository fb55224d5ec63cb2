"""Checks a diffusers model folder before any library reads it: only known classes, no code, sound weights.

diffusers and transformers import classes, and can run code, by what the JSON files of a model say. So everything in
them that chooses code is compared with a list, and what the list lacks is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from security.configs import read_json
from security.errors import RefusedFile, SafelightError
from security.policy import (
    CODE_SUFFIXES,
    MAX_MODEL_FOLDER_ENTRIES,
    MAX_MODEL_JSON_BYTES,
    MAX_VOCABULARY_BYTES,
    PICKLE_SUFFIXES,
)
from security.weights import check_safetensors

PIPELINES: dict[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    "StableDiffusionXLPipeline": (
        "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler",
    ),
}  # fmt: skip
"""Pipelines that may be opened, with the parts that each must have."""

_TOKENIZERS = (("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast"))
_SCHEDULERS = tuple(
    ("diffusers", f"{name}Scheduler")
    for name in (
        "DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete",
        "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "KDPM2Discrete",
        "KDPM2AncestralDiscrete", "LCM", "TCD",
    )
)  # fmt: skip
COMPONENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "unet": (("diffusers", "UNet2DConditionModel"),),
    "vae": (("diffusers", "AutoencoderKL"),),
    "text_encoder": (("transformers", "CLIPTextModel"),),
    "text_encoder_2": (("transformers", "CLIPTextModelWithProjection"),),
    "tokenizer": _TOKENIZERS,
    "tokenizer_2": _TOKENIZERS,
    "scheduler": _SCHEDULERS,
    "image_encoder": (("transformers", "CLIPVisionModelWithProjection"),),
    "feature_extractor": (("transformers", "CLIPImageProcessor"), ("transformers", "CLIPFeatureExtractor")),
    "safety_checker": (("stable_diffusion", "StableDiffusionSafetyChecker"),),
}
"""Library and class that each part of a pipeline may name."""
_MODEL_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")

_CODE_KEYS = frozenset(
    [
        *("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "_ignore_files", "custom_objects"),
        *("auto_mapping", "quantization_config", "quantizer", "init_inputs"),
    ]
)
"""Keys that make a library fetch or run code that the model brings, or import code that no model here needs."""
_OTHER_FILE_KEYS = frozenset(["transformers_weights", "base_model_name_or_path", "gguf_file", "fast_tokenizer_files"])
"""Keys that make a library load other files than those that were checked."""
_FILE_NAME_KEYS = frozenset(["vocab_file", "merges_file", "tokenizer_file", "added_tokens_file"])
"""Keys whose value transformers opens as it stands, wherever it leads."""
_ADAPTER_FILE = "adapter_config.json"
"""In the folder of a part, it makes transformers load an adapter that nobody chose, from where it says."""
_IMPLEMENTATION_KEYS = ("attn_implementation", "experts_implementation")
_ATTENTION = ("eager", "sdpa", "flash_attention_2")
"""Code that is part of the libraries; other values name code on a hub."""
_VOCABULARY_FILES = ("vocab.json", "tokenizer.json", "added_tokens.json")
"""Large tables of words. Their keys are text, not settings."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors", re.ASCII)


def check_diffusers_folder(path: Path) -> None:
    """Checks a model folder of Stable Diffusion 1.x/2.x or SDXL. Reads JSON texts and weight headers only.

    Raises RefusedFile that names the file and the fault, or everything that is missing.
    """
    if not (path / "model_index.json").is_file():
        raise RefusedFile(f"{path} is not a diffusers model: it has no model_index.json. Choose the folder with it.")
    try:
        files = list(checked_files(path))
        _check_index(read_json(path / "model_index.json", MAX_MODEL_JSON_BYTES), path)
        for file in files:
            if file.suffix.lower() == ".json":
                check_json_file(file)
            elif file.suffix.lower() == ".safetensors":
                check_safetensors(file)
    except RefusedFile:
        raise
    except SafelightError as error:
        raise RefusedFile(f"The model in {path} cannot be used. {error}") from None


def checked_files(folder: Path) -> Iterator[Path]:
    """Every regular file below `folder`. Raises RefusedFile for links, programs and too many entries."""
    for number, path in enumerate(folder.rglob("*"), start=1):
        shown = path.relative_to(folder)
        if number > MAX_MODEL_FOLDER_ENTRIES:
            raise RefusedFile(f"{folder} holds over {MAX_MODEL_FOLDER_ENTRIES} files. Choose the model's own folder.")
        if path.is_symlink():
            raise RefusedFile(
                f"{shown} in {folder} is a link, as in a download cache. Copy the model with its files: cp -rL FROM TO."
            )
        if path.is_dir():
            continue
        if not path.is_file():
            raise RefusedFile(f"{shown} in {folder} is not a regular file. Remove it.")
        if path.suffix.lower() in CODE_SUFFIXES:
            raise RefusedFile(f"{shown} in {folder} is a program. A model needs none. Remove it if you trust the rest.")
        yield path


def _check_index(index: dict[str, Any], folder: Path) -> None:
    """Checks model_index.json: pipeline and parts are on the lists, and every needed part is there."""
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise RefusedFile(f"{folder} is a {str(pipeline)[:80]!r} model. Supported are {known}.")
    for part, value in index.items():
        is_flag = value is None or isinstance(value, bool | int | float)  # such as "requires_safety_checker": false
        if part.startswith("_") or is_flag or value == [None, None]:
            continue
        if part not in COMPONENTS:
            raise RefusedFile(f"{folder} has the unknown part {part[:80]!r} in model_index.json. Remove it there.")
        if not isinstance(value, list) or tuple(map(str, value)) not in COMPONENTS[part]:
            allowed = " or ".join(name for _, name in COMPONENTS[part])
            raise RefusedFile(f"{folder} has {str(value)[:80]} as {part} in model_index.json. It must be {allowed}.")
    missing = [fault for part in PIPELINES[pipeline] if (fault := _missing(part, index, folder))]
    if missing:
        raise RefusedFile(f"The model in {folder} is not complete. Missing: {'; '.join(missing)}. Download it again.")


def _missing(part: str, index: dict[str, Any], folder: Path) -> str:
    """What a needed part of the pipeline lacks, or ""."""
    if not isinstance(index.get(part), list) or index[part] == [None, None]:
        return f"{part} in model_index.json"
    files = {file.name for file in (folder / part).glob("*")}
    if part == "scheduler":
        return "" if "scheduler_config.json" in files else f"{part}/scheduler_config.json"
    if part not in _MODEL_PARTS:
        complete = "tokenizer.json" in files or {"vocab.json", "merges.txt"} <= files
        return "" if complete else f"{part}/vocab.json and {part}/merges.txt"
    if "config.json" not in files:
        return f"{part}/config.json"
    if any(name.endswith(".safetensors") for name in files):
        return ""
    pickled = sorted(name for name in files if name.endswith(PICKLE_SUFFIXES))
    return f"{part}/*.safetensors" + (f" (there is only {pickled[0]}, a format that can run code)" if pickled else "")


def check_json_file(file: Path) -> None:
    """Checks one JSON file by its kind. Raises RefusedFile or RefusedConfig."""
    if file.name == _ADAPTER_FILE:
        raise RefusedFile(f"{file.parent.name}/{file.name} would load an adapter into the model. Take it out.")
    if file.name in _VOCABULARY_FILES:
        values = read_json(file, MAX_VOCABULARY_BYTES)
        values.pop("model", None)  # the word table inside tokenizer.json
    else:
        values = read_json(file, MAX_VOCABULARY_BYTES if file.name.endswith(".index.json") else MAX_MODEL_JSON_BYTES)
    if file.name in ("vocab.json", "added_tokens.json"):
        if not all(type(number) is int for number in values.values()):
            raise RefusedFile(f"{file.name} is not a table of words and numbers. Download the model again.")
        return
    if file.name.endswith(".index.json"):
        _check_shards(values, file)
    class_name = values.get("_class_name")
    known = {name for choices in COMPONENTS.values() for _, name in choices} | set(PIPELINES)
    if class_name is not None and (not isinstance(class_name, str) or class_name not in known):
        raise RefusedFile(f"{file.parent.name}/{file.name} is for the unsupported class {str(class_name)[:80]!r}.")
    for key, value in walk(values):
        _check_key(key, value, file)


def _check_shards(values: dict[str, Any], file: Path) -> None:
    """Checks that an index of split weights names plain files of its own folder."""
    shards = values.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise RefusedFile(f"{file.name} has no table `weight_map` of file names. Download the model again.")
    for name in set(shards.values()):
        if not _SHARD_NAME.fullmatch(name):
            raise RefusedFile(f"{file.name} names the weight file {name[:80]!r}, which is no plain .safetensors name.")
        if not (file.parent / name).is_file():
            raise RefusedFile(f"{file.name} names {name}, which is missing. Download the model again.")


def read_settings(file: Path) -> dict[str, Any]:
    """Reads a JSON file with settings for the classes of a model. Raises RefusedFile or RefusedConfig.

    Nothing in it, at any depth, may make a library fetch or run foreign code or load other files.
    """
    values = read_json(file, MAX_MODEL_JSON_BYTES)
    for key, value in walk(values):
        _check_key(key, value, file)
    return values


def _check_key(key: str, value: object, file: Path) -> None:
    """Raises RefusedFile if a setting would make a library fetch or run foreign code, or open other files."""
    if value is None or value in ("", [], {}):
        return
    shown = f"{file.parent.name}/{file.name} has {key[:60]!r}: {str(value)[:60]!r}"
    if key in _CODE_KEYS:
        raise RefusedFile(f"{shown}, which makes a library run the model's code. Remove it if you trust the rest.")
    if key in _OTHER_FILE_KEYS or (key in _FILE_NAME_KEYS and not _FILE_NAME.fullmatch(str(value))):
        raise RefusedFile(f"{shown}, which makes a library open other files. Remove it if you trust the rest.")
    if any(name in key for name in _IMPLEMENTATION_KEYS) and value not in _ATTENTION:
        raise RefusedFile(f"{shown}; allowed are {', '.join(_ATTENTION)}.")
    if key == "chat_template" and not isinstance(value, str):  # the names in a table become names of files
        raise RefusedFile(f"{shown}, which names files to write. Remove it: these models have no chat.")
    # Convolution sizes ("conv_in_kernel": 3) are numbers; a text names compiled code to fetch.
    if "kernel" in key.lower() and isinstance(value, str | dict):
        raise RefusedFile(f"{shown}, which can name compiled code to fetch. Remove that line if you trust the rest.")


def walk(values: object) -> Iterator[tuple[str, object]]:
    """Every key with its value, at any depth (which read_json has bounded)."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield key, value
            yield from walk(value)
    elif isinstance(values, list):
        for value in values:
            yield from walk(value)
