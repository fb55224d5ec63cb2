"""Model folders: a sound one passes, code and unknown classes are refused, and what is missing is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from security.errors import RefusedFile
from security.repos import COMPONENTS, PIPELINES, check_diffusers_folder, read_settings
from tests.security.weight_files import write_one_tensor

Change = Callable[[Path], None]


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def edit(name: str, **values: Any) -> Change:
    """A change that sets top-level keys of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        write_json(path, json.loads(path.read_text()) | values)

    return change


def write(name: str, text: str) -> Change:
    """A change that writes a file."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def remove(*names: str) -> Change:
    """A change that deletes files."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def make_model(folder: Path, pipeline: str = "StableDiffusionPipeline") -> Path:
    """A small model folder laid out as the real ones."""
    parts = PIPELINES[pipeline]
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1", "requires_safety_checker": False}
    index |= {part: list(COMPONENTS[part][0]) for part in parts}
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    write_json(folder / "model_index.json", index)
    for part in parts:
        if part == "scheduler":
            write_json(folder / part / "scheduler_config.json", {"_class_name": "DDIMScheduler", "beta_end": 0.012})
        elif part.startswith("tokenizer"):
            write_json(folder / part / "vocab.json", {"kernel</w>": 0, "auto_map": 1, "trust_remote_code": 2})
            (folder / part / "merges.txt").write_text("#version: 0.2\n")
            write_json(folder / part / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"})
            write_json(folder / part / "tokenizer.json", {"version": "1.0", "model": {"vocab": {"kernel": 1}}})
        else:
            write_json(
                folder / part / "config.json",
                {"conv_in_kernel": 3, "attn_implementation": "sdpa", "nested": [{"a": 1}]},
            )
            write_one_tensor(folder / part / "model.safetensors")
    (folder / "README.md").write_text("A model.")
    return folder


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_sound_model_passes(tmp_path: Path, pipeline: str) -> None:
    check_diffusers_folder(make_model(tmp_path, pipeline))


def test_settings_that_real_models_have_pass(tmp_path: Path) -> None:
    """Keys as in the published files of Stable Diffusion 1.5 and SDXL, and empty ones."""
    folder = make_model(tmp_path)
    edit(
        "tokenizer/tokenizer_config.json",
        name_or_path="openai/clip-vit-large-patch14", special_tokens_map_file="/home/x/.cache/special_tokens_map.json",
        vocab_file="vocab.json", tokenizer_file=None, init_inputs=[], chat_template="{{ x }}", auto_map=None,
    )(folder)  # fmt: skip
    edit("text_encoder/config.json", _name_or_path="/data/models/x", quantization_config=None, architectures=["A"])(
        folder
    )
    edit("unet/config.json", _name_or_path="../other", _use_default_values=["a"], resnet_time_scale_shift="default")(
        folder
    )
    check_diffusers_folder(folder)


def test_settings_beside_a_single_file_pass_the_same_gate(tmp_path: Path) -> None:
    path = tmp_path / "x.config.json"
    write_json(path, {"unet": {"attention_head_dim": 4, "conv_in_kernel": 3}})
    assert read_settings(path) == {"unet": {"attention_head_dim": 4, "conv_in_kernel": 3}}
    write_json(path, {"text_encoder": {"_attn_implementation_internal": "someone/attn"}})
    with pytest.raises(RefusedFile, match=r"x\.config\.json has '_attn_implementation_internal'.*allowed are eager"):
        read_settings(path)


def test_extra_weights_in_other_formats_are_left_alone(tmp_path: Path) -> None:
    make_model(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02")
    (tmp_path / "v1-5.ckpt").write_bytes(b"PK\x03\x04")
    check_diffusers_folder(tmp_path)


def test_split_weights_pass(tmp_path: Path) -> None:
    make_model(tmp_path)
    index = {"metadata": {"total_size": 12}, "weight_map": {"weight": "model.safetensors"}}
    write_json(tmp_path / "unet" / "m.safetensors.index.json", index)
    check_diffusers_folder(tmp_path)


UNSAFE: dict[str, tuple[Change, str]] = {
    "class name is a list": (edit("model_index.json", _class_name=["pipeline", "Mine"]), "model. Supported are"),
    "unknown pipeline": (edit("model_index.json", _class_name="EvilPipeline"), "EvilPipeline"),
    "no pipeline": (edit("model_index.json", _class_name=None), "Supported are"),
    "unknown part": (edit("model_index.json", extra=["diffusers", "UNet2DConditionModel"]), "unknown part 'extra'"),
    "class of the model's own code": (
        edit("model_index.json", unet=["my_unet", "MyUNet"]),
        "It must be UNet2DConditionModel",
    ),
    "known class of another library": (edit("model_index.json", unet=["mine", "UNet2DConditionModel"]), "It must be"),
    "class of another library": (edit("model_index.json", unet=["os", "system"]), "It must be"),
    "three-part class": (edit("model_index.json", unet=["diffusers", "UNet2DConditionModel", "x"]), "It must be"),
    "part is a table": (edit("model_index.json", unet={"a": 1}), "It must be"),
    "a text where a part must be": (edit("model_index.json", unet="diffusers"), "It must be"),
    "a text as an unknown part": (edit("model_index.json", extra="someone/code"), "unknown part 'extra'"),
    "custom pipeline": (edit("model_index.json", custom_pipeline="someone/code"), "unknown part 'custom_pipeline'"),
    "custom pipeline in a part": (edit("unet/config.json", custom_pipeline="someone/code"), "run the model's code"),
    "auto_map": (edit("text_encoder/config.json", auto_map={"AutoModel": "evil.Model"}), "run the model's code"),
    "auto_map deep inside": (edit("unet/config.json", nested=[{"x": {"auto_map": "y"}}]), "run the model's code"),
    "auto_map of a tokenizer": (
        edit("tokenizer/tokenizer_config.json", auto_map=["evil.Tok", None]),
        "run the model's code",
    ),
    "attention from a hub": (
        edit("text_encoder/config.json", _attn_implementation_internal="someone/attn"),
        "allowed are eager",
    ),
    "kernel from a hub": (edit("text_encoder/config.json", hub_kernel="someone/kernel"), "compiled code"),
    "kernel table": (edit("text_encoder/config.json", kernel_config={"rms": "x/y"}), "compiled code"),
    "kernel list": (edit("text_encoder/config.json", use_kernels={"a": ["x/y"]}), "compiled code"),
    "expert code from a hub": (edit("unet/config.json", _experts_implementation="someone/x"), "allowed are eager"),
    "attention table": (edit("text_encoder/config.json", attn_implementation={"": "someone/x"}), "allowed are eager"),
    "trust_remote_code": (edit("text_encoder/config.json", trust_remote_code=True), "run the model's code"),
    "files to ignore": (edit("unet/config.json", _ignore_files=["modeling.py"]), "run the model's code"),
    "quantizer": (edit("unet/config.json", quantization_config={"quant_method": "x"}), "run the model's code"),
    "arguments of a tokenizer": (edit("tokenizer/tokenizer_config.json", init_inputs=["/etc/passwd"]), "model's code"),
    "other weights": (edit("text_encoder/config.json", transformers_weights="../../x.safetensors"), "open other files"),
    "weights of llama.cpp": (edit("text_encoder/config.json", gguf_file="x.gguf"), "open other files"),
    "another base": (edit("unet/config.json", base_model_name_or_path="/home/x/other"), "open other files"),
    "tokenizer elsewhere": (edit("tokenizer/tokenizer_config.json", vocab_file="/etc/passwd"), "open other files"),
    "merges elsewhere": (edit("tokenizer/tokenizer_config.json", merges_file="..\\x.txt"), "open other files"),
    "tokenizer file elsewhere": (
        edit("tokenizer/tokenizer_config.json", tokenizer_file="../x.json"),
        "open other files",
    ),
    "tokenizers by version": (
        edit("tokenizer/tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.json"]),
        "open other files",
    ),
    "chat templates by name": (
        edit("tokenizer/tokenizer_config.json", chat_template=[{"name": "../../x", "template": "y"}]),
        "names files to write",
    ),
    "adapter": (write("text_encoder/adapter_config.json", '{"peft_type": "LORA"}'), "would load an adapter"),
    "class in a part's config": (edit("unet/config.json", _class_name="EvilModel"), "unsupported class 'EvilModel'"),
    "class list in a part's config": (edit("unet/config.json", _class_name=["a", "b"]), "unsupported class"),
    "duplicate key": (write("unet/config.json", '{"a": 1, "a": 2}'), "'a' twice"),
    "broken JSON": (write("unet/config.json", "{"), "not valid JSON"),
    "large JSON": (write("unet/config.json", '{"a": "' + "x" * 2**20 + '"}'), "larger than"),
    "words with code": (edit("tokenizer/vocab.json", word={"a": 1}), "table of words"),
    "Python file": (write("pipeline.py", "print(1)"), "is a program"),
    "Python file in a part": (write("unet/modeling.PY", "print(1)"), "is a program"),
    "library": (write("unet/x.so", ""), "is a program"),
    "broken weights": (write("unet/model.safetensors", "<html>"), "web page"),
    "broken weights beside": (write("vae/other.safetensors", "GGUF"), "GGUF"),
    "shard outside": (write("unet/m.index.json", '{"weight_map": {"a": "../../x.safetensors"}}'), "no plain"),
    "shard that is a pickle": (write("unet/m.index.json", '{"weight_map": {"a": "x.bin"}}'), "no plain"),
    "shard missing": (write("unet/m.index.json", '{"weight_map": {"a": "x.safetensors"}}'), "is missing"),
    "shard table": (write("unet/m.index.json", '{"weight_map": {"a": 1}}'), "weight_map"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_could_run_code_is_refused(tmp_path: Path, case: str) -> None:
    make_model(tmp_path)
    change, reason = UNSAFE[case]
    change(tmp_path)
    with pytest.raises(RefusedFile, match=reason):
        check_diffusers_folder(tmp_path)


MISSING: dict[str, tuple[Change, str]] = {
    "index": (remove("model_index.json"), "no model_index.json"),
    "weights": (remove("unet/model.safetensors"), r"unet/\*\.safetensors"),
    "config": (remove("vae/config.json"), "vae/config.json"),
    "scheduler": (remove("scheduler/scheduler_config.json"), "scheduler/scheduler_config.json"),
    "words": (remove("tokenizer/vocab.json", "tokenizer/tokenizer.json"), "tokenizer/vocab.json"),
    "part in the index": (edit("model_index.json", vae=[None, None]), "vae in model_index.json"),
    "a flag where a part must be": (edit("model_index.json", unet=True), "unet in model_index.json"),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_named(tmp_path: Path, case: str) -> None:
    make_model(tmp_path)
    change, reason = MISSING[case]
    change(tmp_path)
    with pytest.raises(RefusedFile, match=reason):
        check_diffusers_folder(tmp_path)


def test_everything_missing_is_named_at_once_and_pickles_are_explained(tmp_path: Path) -> None:
    make_model(tmp_path)
    remove("unet/model.safetensors", "vae/config.json")(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(
        RefusedFile, match=r"unet/\*\.safetensors \(there is only diffusion_pytorch_model\.bin.*vae/config"
    ):
        check_diffusers_folder(tmp_path)


def test_links_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (tmp_path / "blob").write_bytes((folder / "unet" / "model.safetensors").read_bytes())
    (folder / "unet" / "model.safetensors").unlink()
    (folder / "unet" / "model.safetensors").symlink_to(tmp_path / "blob")
    with pytest.raises(RefusedFile, match="cp -rL"):
        check_diffusers_folder(folder)


def test_a_folder_of_anything_is_refused_quickly(tmp_path: Path) -> None:
    make_model(tmp_path)
    (tmp_path / "many").mkdir()
    for number in range(1001):
        (tmp_path / "many" / f"{number}.txt").touch()
    with pytest.raises(RefusedFile, match="over 1000 files"):
        check_diffusers_folder(tmp_path)
