"""Checks the folder of a captioner before transformers reads it: one known model class, safetensors, no code.

transformers chooses classes, and fetches or runs code, by what the JSON files of a folder say. The names in them are
compared with the rows of this table; all else that `repos.py` refuses in the parts of a pipeline is refused here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from security.configs import read_json
from security.errors import RefusedFile, SafelightError
from security.policy import MAX_MODEL_JSON_BYTES, MAX_VOCABULARY_BYTES, PICKLE_SUFFIXES
from security.repos import check_json_file, checked_files, walk
from security.weights import check_safetensors

_BERT = ("BertTokenizer", "BertTokenizerFast")
_CLIP_IMAGES = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor", "CLIPImageProcessorPil")
_BLIP_IMAGES = ("BlipImageProcessor", "BlipImageProcessorFast", "BlipImageProcessorPil")
_QWEN_IMAGES = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
_QWEN_TOKENIZERS = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend")


@dataclass(frozen=True)
class CaptionerFormat:
    """What the JSON files of one kind of captioner may name. `architecture` is its class in transformers."""

    architecture: str
    parts: tuple[str, ...]
    tokenizers: tuple[str, ...]
    images: tuple[str, ...]
    processors: tuple[str, ...]
    videos: tuple[str, ...] = ()


CAPTIONERS: dict[str, CaptionerFormat] = {
    "blip": CaptionerFormat(
        "BlipForConditionalGeneration",
        ("blip_text_model", "blip_vision_model"),
        _BERT,
        _BLIP_IMAGES,
        ("BlipProcessor",),
    ),
    "blip-2": CaptionerFormat(
        "Blip2ForConditionalGeneration",
        ("blip_2_vision_model", "blip_2_qformer", "opt"),
        ("GPT2Tokenizer", "GPT2TokenizerFast", "TokenizersBackend"),
        _BLIP_IMAGES,
        ("Blip2Processor",),
    ),
    "git": CaptionerFormat("GitForCausalLM", ("git_vision_model",), _BERT, _CLIP_IMAGES, ("GitProcessor",)),
    "florence2": CaptionerFormat(
        "Florence2ForConditionalGeneration",
        ("bart", "florence_vision"),
        ("BartTokenizer", "BartTokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast", "TokenizersBackend"),
        _CLIP_IMAGES,
        ("Florence2Processor",),
    ),
    "qwen2_5_vl": CaptionerFormat(
        "Qwen2_5_VLForConditionalGeneration",
        ("qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_vl_vision"),
        _QWEN_TOKENIZERS,
        _QWEN_IMAGES,
        ("Qwen2_5_VLProcessor",),
        ("Qwen2VLVideoProcessor",),
    ),
    "qwen3_vl": CaptionerFormat(
        "Qwen3VLForConditionalGeneration",
        ("qwen3_vl", "qwen3_vl_text", "qwen3_vl_vision"),
        _QWEN_TOKENIZERS,
        _QWEN_IMAGES,
        ("Qwen3VLProcessor",),
        ("Qwen3VLVideoProcessor",),
    ),
    "llava": CaptionerFormat(
        "LlavaForConditionalGeneration",
        ("llama", "siglip_vision_model", "clip_vision_model"),
        ("PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast"),
        ("SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil", *_CLIP_IMAGES),
        ("LlavaProcessor",),
    ),
}
"""Kinds of captioners that may be opened, by `model_type` of their config.json."""

_TOKENIZER_NAMES = ("tokenizer.json", "vocab.json", "vocab.txt")
_TEMPLATE_NAME = "chat_template.jinja"


def check_captioner_folder(path: Path) -> str:
    """Checks the folder of a captioner and returns its kind, a key of CAPTIONERS. Reads texts and weight headers only.

    Raises RefusedFile that names the file and the fault, or everything that is missing.
    """
    if not (path / "config.json").is_file():
        raise RefusedFile(f"{path} is not a captioner: it has no config.json. Choose the folder that holds it.")
    try:
        files = list(checked_files(path))
        kind = _kind(read_json(path / "config.json", MAX_MODEL_JSON_BYTES), path)
        for file in files:
            if file.parent != path:
                raise RefusedFile(
                    f"{file.relative_to(path)} lies in a folder of its own; a captioner has none. Remove it."
                )
            if file.suffix.lower() == ".json":
                check_json_file(file)
                if file.name not in _TOKENIZER_NAMES and not file.name.endswith(".index.json"):
                    _check_names(_settings(file), file, CAPTIONERS[kind])
            elif file.suffix.lower() == ".safetensors":
                check_safetensors(file)
            elif file.suffix.lower() == ".jinja" and (
                file.name != _TEMPLATE_NAME or file.stat().st_size > MAX_MODEL_JSON_BYTES
            ):
                raise RefusedFile(f"{file.name} is no chat template that a captioner needs. Remove it.")
        _check_complete({file.name for file in files}, path)
    except RefusedFile:
        raise
    except SafelightError as error:
        raise RefusedFile(f"The captioner in {path} cannot be used. {error}") from None
    return kind


def _kind(config: Mapping[str, Any], folder: Path) -> str:
    """The kind that config.json names; its class must fit."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CAPTIONERS:
        raise RefusedFile(
            f"{folder} is a {str(kind)[:60]!r} model, no captioner that is known here: {', '.join(CAPTIONERS)}."
        )
    wanted = [CAPTIONERS[kind].architecture]
    if config.get("architectures", wanted) != wanted:
        raise RefusedFile(f"{folder} names the class {str(config['architectures'])[:80]}; it must be {wanted[0]}.")
    return kind


def _settings(file: Path) -> dict[str, Any]:
    return read_json(file, MAX_VOCABULARY_BYTES if file.name == "tokenizer_config.json" else MAX_MODEL_JSON_BYTES)


def _check_names(values: Mapping[str, Any], file: Path, known: CaptionerFormat) -> None:
    """Raises RefusedFile for a class or part that this kind does not have."""
    allowed: dict[str, tuple[str, ...]] = {
        "tokenizer_class": known.tokenizers,
        "image_processor_type": known.images,
        "feature_extractor_type": known.images,
        "processor_class": known.processors,
        "video_processor_type": known.videos,
    }
    for key, value in walk(values):
        if key in allowed and value is not None and value not in allowed[key]:
            raise RefusedFile(f"{file.name} names {str(value)[:80]!r} as {key}; allowed are {', '.join(allowed[key])}.")
    if file.name == "config.json":
        for where, part in _parts(values):
            if part not in known.parts:
                raise RefusedFile(
                    f"{file.name} has a {str(part)[:60]!r} model as {where[:60]}; allowed are {', '.join(known.parts)}."
                )


def _parts(values: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Every `model_type` below the first level, with the name of what it belongs to."""
    for key, value in walk(values):
        if isinstance(value, dict) and "model_type" in value:
            yield key, value["model_type"]


def _check_complete(names: set[str], folder: Path) -> None:
    missing = []
    if not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
        missing.append("*.safetensors" + (f" (there is only {pickled[0]}, which can run code)" if pickled else ""))
    if not names & set(_TOKENIZER_NAMES):
        missing.append("tokenizer.json")
    if not names & {"preprocessor_config.json", "processor_config.json"}:
        missing.append("preprocessor_config.json")
    if missing:
        raise RefusedFile(
            f"The captioner in {folder} is not complete. Missing: {'; '.join(missing)}. Download it again."
        )
