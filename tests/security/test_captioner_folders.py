"""The gate in front of captioners: what transformers would act on is on a list, or the folder is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from security.captioners import CAPTIONERS, check_captioner_folder
from security.errors import RefusedFile

WEIGHTS = struct.pack("<Q", 59) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}     ' + bytes(4)


def make_captioner(folder: Path, kind: str = "llava") -> Path:
    """The smallest folder of a captioner that is whole."""
    known = CAPTIONERS[kind]
    folder.mkdir()
    texts: dict[str, Any] = {
        "config.json": {
            "model_type": kind,
            "architectures": [known.architecture],
            "text_config": {"model_type": known.parts[0], "rope_scaling": None},
        },
        "preprocessor_config.json": {"image_processor_type": known.images[0], "processor_class": known.processors[0]},
        "tokenizer_config.json": {"tokenizer_class": known.tokenizers[0], "chat_template": "{{ messages }}"},
        "tokenizer.json": {"version": "1.0", "model": {"type": "BPE", "vocab": {"kernel": 1, "auto_map": 2}}},
    }
    for name, values in texts.items():
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**before, **values}), encoding="utf-8")


@pytest.mark.parametrize("kind", CAPTIONERS)
def test_a_whole_folder_is_taken_for_what_it_is(kind: str, tmp_path: Path) -> None:
    assert check_captioner_folder(make_captioner(tmp_path / kind, kind)) == kind


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"auto_map": {"AutoModel": "modeling.Evil"}}, "run the model's code"),
    ("config.json", {"model_type": "internvl_chat"}, "no captioner that is known"),
    ("config.json", {"model_type": ["llava"]}, "no captioner that is known"),
    ("config.json", {"architectures": ["LlamaForCausalLM"]}, "must be LlavaForConditionalGeneration"),
    ("config.json", {"text_config": {"model_type": "rag"}}, "has a 'rag' model as text_config"),
    ("config.json", {"vision_config": {"deep": {"model_type": "timm_wrapper"}}}, "timm_wrapper"),
    ("config.json", {"attn_implementation": "someone/kernel"}, "allowed are eager"),
    ("config.json", {"quantization_config": {"quant_method": "x"}}, "run the model's code"),
    ("config.json", {"transformers_weights": "../other.safetensors"}, "open other files"),
    ("tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"}, "names 'EvilTokenizer' as tokenizer_class"),
    ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "open other files"),
    ("tokenizer_config.json", {"chat_template": [{"name": "../x", "template": ""}]}, "names files to write"),
    ("preprocessor_config.json", {"image_processor_type": "Evil"}, "names 'Evil' as image_processor_type"),
    ("preprocessor_config.json", {"processor_class": "CLIPProcessor"}, "allowed are LlavaProcessor"),
    ("processor_config.json", {"image_processor": {"image_processor_type": "Evil"}}, "names 'Evil'"),
    ("processor_config.json", {"audio_tokenizer": {"processor_class": "x"}}, "names 'x' as processor_class"),
    ("generation_config.json", {"custom_pipeline": "x"}, "run the model's code"),
    ("adapter_config.json", {"base_model_name_or_path": "x"}, "would load an adapter"),
    ("model.safetensors.index.json", {"weight_map": {"a": "../x.safetensors"}}, "no plain .safetensors name"),
]


@pytest.mark.parametrize(("name", "values", "words"), BAD, ids=lambda value: str(value)[:40])
def test_what_transformers_would_act_on_is_refused(
    name: str, values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = make_captioner(tmp_path / "llava")
    change(folder, name, **values)
    with pytest.raises(RefusedFile, match=words):
        check_captioner_folder(folder)


def test_files_that_no_captioner_has_are_refused(tmp_path: Path) -> None:
    for name in ("modeling.py", "sub/tokenizer.json", "other.jinja"):
        folder = make_captioner(tmp_path / name.partition("/")[0])
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
        with pytest.raises(RefusedFile, match=name.partition("/")[0]):
            check_captioner_folder(folder)
    folder = make_captioner(tmp_path / "link")
    (folder / "vocab.json").symlink_to("/etc/hostname")
    with pytest.raises(RefusedFile, match="is a link"):
        check_captioner_folder(folder)


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    folder = make_captioner(tmp_path / "llava")
    for name in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(RefusedFile, match=r"only pytorch_model.bin.*tokenizer.json.*preprocessor_config.json"):
        check_captioner_folder(folder)
    with pytest.raises(RefusedFile, match=r"has no config\.json"):
        check_captioner_folder(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = make_captioner(tmp_path / "llava")
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1])
    with pytest.raises(RefusedFile, match=r"model.safetensors"):
        check_captioner_folder(folder)
