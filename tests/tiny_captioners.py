"""Captioners of transformers' real classes with random weights, a few hundred kilobytes each, saved as the real folders are.

Random networks answer nonsense, but each picture gets its own: the weights are wide enough that the answer hangs on it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN_MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{% if m['role'] == 'user' %}<image>{% endif %}"
    "{{ m['content'] | trim }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)


def pictures(count: int = 3) -> list[Image.Image]:
    """Upright RGB pictures of different sizes and content."""
    sizes = [(60, 90), (64, 64), (130, 70), (90, 200)]
    made = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        noise = np.random.default_rng(number).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        made.append(Image.fromarray(noise).resize((width, height)))
    return made


def tiny_captioner(kind: str, folder: Path) -> Path:
    """Writes the captioner of that kind (a key of security.captioners.CAPTIONERS) into a folder and returns it."""
    torch.manual_seed(7)
    folder.mkdir(parents=True)
    BUILDERS[kind](folder)
    return folder


def _save(folder: Path, model: Any, *parts: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                parameter.normal_(0.0, 0.35)
    model.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)


def _bert(folder: Path) -> Any:
    from transformers import BertTokenizer

    letters = [chr(code) for code in range(97, 123)]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
        "photo",
        "of",
    ]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return BertTokenizer.from_pretrained(folder)


def _bytes(cls: Any, marks: list[str], **more: Any) -> Any:
    """A tokenizer whose tokens are single signs of ASCII, as a byte-level one writes them (a space is "\u0120")."""
    tokens = [*marks, *(chr(code) for code in range(33, 127)), "\u0120", "\u010a"]
    return cls(vocab={token: number for number, token in enumerate(tokens)}, merges=[], **more)


def _blip(folder: Path) -> None:
    import transformers as t

    tokenizer = _bert(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    text = {
        **WIDTH,
        "vocab_size": len(tokenizer),
        "encoder_hidden_size": 32,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }
    config = t.BlipConfig(text_config=text, vision_config={**WIDTH, "image_size": 32, "patch_size": 8})
    images = t.BlipImageProcessorPil(size={"height": 32, "width": 32})
    _save(folder, t.BlipForConditionalGeneration(config), t.BlipProcessor(images, tokenizer))


def _git(folder: Path) -> None:
    import transformers as t

    tokenizer = _bert(folder)
    config = t.GitConfig(
        vision_config={**WIDTH, "image_size": 32, "patch_size": 8},
        **WIDTH,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    images = t.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    _save(folder, t.GitForCausalLM(config), t.GitProcessor(images, tokenizer))


def _blip2(folder: Path) -> None:
    import transformers as t

    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = _bytes(t.GPT2Tokenizer, marks, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>")
    images = t.BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = t.Blip2Processor(images, tokenizer, num_query_tokens=4)
    text = {
        "model_type": "opt",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 32,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    config = t.Blip2Config(
        vision_config={**WIDTH, "image_size": 32, "patch_size": 8},
        qformer_config={**WIDTH, "vocab_size": 50, "encoder_hidden_size": 32, "max_position_embeddings": 32},
        text_config=text,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    _save(folder, t.Blip2ForConditionalGeneration(config), processor)


def _florence2(folder: Path) -> None:
    import transformers as t

    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>"]
    tokenizer = _bytes(t.BartTokenizer, marks, extra_special_tokens={"image_token": "<image>"})
    images = t.CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "max_position_embeddings": 128,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    vision = {
        "embed_dim": [8, 16, 32, 32],
        "num_heads": [1, 2, 2, 2],
        "num_groups": [1, 2, 2, 2],
        "depths": [1, 1, 1, 1],
        "projection_dim": 32,
        "window_size": 2,
    }
    mark = tokenizer.convert_tokens_to_ids("<image>")
    config = t.Florence2Config(text_config=text, vision_config=vision, image_token_id=mark)
    _save(folder, t.Florence2ForConditionalGeneration(config), t.Florence2Processor(images, tokenizer))


def _qwen(folder: Path, *, generation: int) -> None:
    import transformers as t

    tokenizer = _bytes(t.Qwen2Tokenizer, [], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_MARKS})
    ids = dict(zip(QWEN_MARKS, tokenizer.convert_tokens_to_ids(QWEN_MARKS), strict=True))
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}
    text = {**WIDTH, "vocab_size": len(tokenizer), "num_key_value_heads": 1, "rope_parameters": rope}
    text |= {"bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": tokenizer.pad_token_id}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    if generation == 3:
        rope["mrope_interleaved"] = True
        text["head_dim"] = 16
        vision |= {"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        config_class, model_class = t.Qwen3VLConfig, t.Qwen3VLForConditionalGeneration
    else:
        vision |= {"fullatt_block_indexes": [1], "window_size": 56}
        config_class, model_class = t.Qwen2_5_VLConfig, t.Qwen2_5_VLForConditionalGeneration
    config = config_class(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = model_class(config)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    patch = 16 if generation == 3 else 14
    images = t.Qwen2VLImageProcessorPil(patch_size=patch, size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128})
    _save(folder, model, tokenizer, images)
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE, encoding="utf-8")


def _llava(folder: Path) -> None:
    import transformers as t

    plain = _bytes(t.GPT2Tokenizer, [])
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=plain._tokenizer, eos_token="<|eot|>", pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>", "<image>"]})
    images = t.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = t.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="full", chat_template=LLAVA_TEMPLATE
    )
    text = {**WIDTH, "model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 1}
    text |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {**WIDTH, "model_type": "siglip_vision_model", "num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    config = t.LlavaConfig(
        text_config=text,
        vision_config={**vision, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        image_seq_length=16,
    )
    model = t.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    _save(folder, model, processor)


def as_older_folder(folder: Path) -> Path:
    """Writes the processor's files as transformers 4 did, which is how most repositories have them. Returns the folder."""
    whole = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    images = {**whole.pop("image_processor"), "processor_class": whole["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    (folder / "processor_config.json").write_text(json.dumps(whole), encoding="utf-8")
    if (template := folder / "chat_template.jinja").exists():
        text = {"chat_template": template.read_text(encoding="utf-8")}
        (folder / "chat_template.json").write_text(json.dumps(text), encoding="utf-8")
        template.unlink()
    return folder


def copied(folder: Path, to: Path) -> Path:
    """A copy of a captioner that a test may spoil."""
    shutil.copytree(folder, to)
    return to


BUILDERS: dict[str, Callable[[Path], None]] = {
    "blip": _blip,
    "blip-2": _blip2,
    "git": _git,
    "florence2": _florence2,
    "qwen2_5_vl": lambda folder: _qwen(folder, generation=2),
    "qwen3_vl": lambda folder: _qwen(folder, generation=3),
    "llava": _llava,
}
