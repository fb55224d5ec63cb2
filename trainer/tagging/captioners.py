"""Captioners: networks of transformers that describe a picture in a sentence (BLIP, BLIP-2, GIT, Florence-2, Qwen-VL, LLaVA).

Every network is opened by its own class in transformers and asked as its own processor does it; only the work is split,
so that pictures are resized ahead while the network writes. Nothing here needs torchvision.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL.Image import Image

from security.captioners import CAPTIONERS, check_captioner_folder
from security.errors import RefusedFile, SafelightError
from trainer.tagging.base import Description, TaggerFiles, TaggerRow, TaggingOptions

if TYPE_CHECKING:
    import torch

Asking = Literal["beginning", "question", "task", "chat"]
"""How a prompt reaches a network: as the first words of its sentence, as a question in front of the answer, as one of its
fixed tasks, or as a message that it answers."""

_SENTENCE_END = re.compile(r"[.!?…][\"')\]]*(?=\s|$)")

_MAX_GAP = 0.01
"""Share of a network's numbers that its files may lack."""
_ROOM = 1.2
"""Memory for a captioner at work, as a multiple of its weights."""


@dataclass(frozen=True)
class CaptionerKind:
    """How one kind of captioner is opened and asked. Names are those of classes in transformers."""

    processor: str
    images: str
    asking: Asking
    echoes_prompt: bool = False
    pads_left: bool = False


KINDS: dict[str, CaptionerKind] = {
    "blip": CaptionerKind("BlipProcessor", "BlipImageProcessorPil", "beginning", echoes_prompt=True),
    "blip-2": CaptionerKind("Blip2Processor", "BlipImageProcessorPil", "question", pads_left=True),
    "git": CaptionerKind("GitProcessor", "CLIPImageProcessorPil", "beginning", echoes_prompt=True),
    "florence2": CaptionerKind("Florence2Processor", "CLIPImageProcessorPil", "task"),
    "qwen2_5_vl": CaptionerKind("Qwen2_5_VLProcessor", "Qwen2VLImageProcessorPil", "chat", pads_left=True),
    "qwen3_vl": CaptionerKind("Qwen3VLProcessor", "Qwen2VLImageProcessorPil", "chat", pads_left=True),
    "llava": CaptionerKind("LlavaProcessor", "SiglipImageProcessorPil", "chat", pads_left=True),
}
"""By `model_type` of config.json, as security.captioners.CAPTIONERS."""


class Captioner:
    """One captioner of transformers; a `trainer.tagging.base.Tagger`.

    `row.settings`: `kind` (a key of KINDS), `prompt` (what is asked unless the user asks something else), `system` (a
    message in front of a chat), `tasks` (prompts of Florence-2 that end in text), `num_beams`, `max_pixels`.
    """

    def __init__(self, options: TaggingOptions, row: TaggerRow) -> None:
        self._options = options
        self._row = row
        self._settings: Mapping[str, Any] = row.settings
        self._prompt = options.prompt.strip() if row.takes_prompt else ""
        self._prompt = self._prompt or str(self._settings.get("prompt", ""))
        tasks = self._settings.get("tasks")
        if tasks and self._prompt not in tasks:
            raise SafelightError(
                f"{row.title} knows fixed tasks and no questions: {', '.join(tasks)}. {self._prompt[:80]!r} is none of them."
            )
        self._model: Any = None
        self._processor: Any = None

    def load(self, files: TaggerFiles, device: str) -> str:
        """Opens the folder with its own classes. Returns such as "CPU, fp32".

        Raises SafelightError for a folder that is refused or is another kind, no GPU, or too little memory.
        """
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()  # it writes over the log
        found = check_captioner_folder(files.folder)
        if found != self._settings["kind"]:
            raise RefusedFile(
                f"{files.folder.name} holds a {found} model; {self._row.title} is {self._settings['kind']}."
            )
        self._kind = KINDS[found]
        place = _chosen_device(device)
        dtype = _chosen_dtype(files.folder, place)
        try:
            self._processor = _open_processor(files.folder, self._kind)
            model, gaps = getattr(transformers, CAPTIONERS[found].architecture).from_pretrained(
                files.folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            _refuse_gaps(model, gaps["missing_keys"], self._row.title)
            self._model = model.eval().to(place)
        except torch.cuda.OutOfMemoryError:
            self.close()
            raise SafelightError(
                f"{self._row.title} does not fit into the GPU's memory. Take a smaller captioner."
            ) from None
        except SafelightError:
            self.close()
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            self.close()  # what transformers raises for files that do not fit together
            raise RefusedFile(
                f"{self._row.title} could not be opened: {str(error)[:300]} Delete it and download it again."
            ) from error
        self._check_prompt()
        self._finish = _ids_that_end(self._model, self._processor.tokenizer)
        return _device_words(place, dtype)

    def _check_prompt(self) -> None:
        """Raises SafelightError for a prompt with the network's own marks, which would end or open a message."""
        tokenizer = self._processor.tokenizer
        marks = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
        if self._kind.asking == "task":
            return
        if found := sorted(mark for mark in marks if mark.strip() and mark in self._prompt):
            raise SafelightError(
                f"The prompt holds {found[0]!r}, a mark that {self._row.title} uses itself. Take it out of the prompt."
            )

    def prepare(self, image: Image) -> dict[str, torch.Tensor]:
        """The picture in the size and colours that the network takes, as a batch of one."""
        size: dict[str, Any] = {}
        if limit := self._settings.get("max_pixels"):
            own = self._processor.image_processor.size
            size = {"size": {"shortest_edge": own["shortest_edge"], "longest_edge": min(own["longest_edge"], limit)}}
        return dict(self._processor.image_processor(images=[image.convert("RGB")], return_tensors="pt", **size))

    def describe(self, prepared: Sequence[Mapping[str, torch.Tensor]]) -> list[Description]:
        """One sentence, or a few, for each picture."""
        import torch

        if not prepared:
            return []
        inputs = {**_joined(prepared), **self._text_inputs(_joined(prepared), len(prepared))}
        place, dtype = self._model.device, self._model.dtype
        moved = {
            name: value.to(place, dtype) if value.is_floating_point() else value.to(place)
            for name, value in inputs.items()
        }
        try:
            with torch.inference_mode():
                answers = self._model.generate(**moved, **self._limits())
        except torch.cuda.OutOfMemoryError:
            raise SafelightError(
                f"{len(prepared)} pictures at a time do not fit into the GPU's memory with {self._row.title}. Lower the "
                "batch size."
            ) from None
        return [self._sentence(answer) for answer in answers[:, self._num_asked(inputs) :]]

    def close(self) -> None:
        """Frees the memory, the GPU's too."""
        import torch

        self._model = self._processor = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _limits(self) -> dict[str, Any]:
        """How to write: always the most likely words, so the same picture gets the same sentence."""
        return {
            "max_new_tokens": self._options.max_new_tokens,
            "num_beams": int(self._settings.get("num_beams", 1)),
            "do_sample": False,
        }

    def _text_inputs(self, images: Mapping[str, Any], count: int) -> dict[str, torch.Tensor]:
        """What the processor would make of the prompt for these pictures; empty when the network is asked nothing."""
        import torch

        processor, tokenizer = self._processor, self._processor.tokenizer
        if self._kind.asking in ("beginning", "question") and not self._prompt:
            return {}
        if self._kind.asking == "beginning":
            # Without the mark of the end, which the processor would put behind the words; BLIP cuts it off by itself.
            words = tokenizer([self._prompt] * count, return_tensors="pt", return_token_type_ids=False)
            cut = slice(None) if type(processor).__name__ == "BlipProcessor" else slice(None, -1)
            return {name: value[:, cut] for name, value in words.items()}
        if self._kind.asking == "question":
            asked = tokenizer([self._prompt] * count, return_tensors="pt", return_token_type_ids=False)
            mark = tokenizer.convert_tokens_to_ids(str(processor.image_token))
            places = torch.full((count, self._model.config.num_query_tokens), mark)
            return {
                "input_ids": torch.cat([places, asked["input_ids"]], dim=1),
                "attention_mask": torch.cat([torch.ones_like(places), asked["attention_mask"]], dim=1),
            }
        text = self._task_text() if self._kind.asking == "task" else self._chat_text()
        places = [processor.replace_image_token(images, number) for number in range(count)]
        texts, _ = processor.get_text_with_replacements([text] * count, places)
        tokens = tokenizer(
            texts, padding=True, **{"return_token_type_ids": False, **getattr(processor, "text_kwargs", {})}
        )
        if processor.return_mm_token_type_ids:
            tokens["mm_token_type_ids"] = processor.create_mm_token_type_ids(tokens["input_ids"])
        return {name: torch.tensor(value) for name, value in tokens.items()}

    def _task_text(self) -> str:
        """Florence-2: the task's own words behind the picture's place, as its processor writes them."""
        tokenizer = self._processor.tokenizer
        (words,) = self._processor._construct_prompts([self._prompt])
        return f"{self._processor.image_token}{tokenizer.bos_token}{words}{tokenizer.eos_token}"

    def _chat_text(self) -> str:
        """The conversation up to the network's turn, with the picture's place in it once."""
        system = str(self._settings.get("system", ""))
        before = [{"role": "system", "content": system}] if system else []
        parts = [{"type": "image"}, {"type": "text", "text": self._prompt}]
        # Templates differ in whether they put the picture's place themselves (JoyCaption's does, given a plain text).
        ways = [parts, self._prompt] if self._row.settings["kind"] != "llava" else [self._prompt, parts]
        for content in ways:
            text = str(
                self._processor.apply_chat_template(
                    [*before, {"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
                )
            )
            if text.count(self._processor.image_token) == 1:
                return text
        raise RefusedFile(f"The chat template of {self._row.title} has no place for a picture. Download it again.")

    def _num_asked(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """How many tokens in front of an answer are the question."""
        if self._kind.echoes_prompt or self._model.config.is_encoder_decoder:
            return 0
        if self._kind.asking == "question":
            return inputs["input_ids"].shape[1] if "input_ids" in inputs else self._model.config.num_query_tokens + 1
        return int(inputs["input_ids"].shape[1])

    def _sentence(self, answer: torch.Tensor) -> str:
        """The words of one answer in one line. One that was cut off at its longest ends with its last whole sentence."""
        ids = answer.tolist()
        text = " ".join(self._processor.tokenizer.decode(ids, skip_special_tokens=True).split())
        if len(ids) >= self._options.max_new_tokens and not self._finish & set(ids[1:]):
            ends = [found.end() for found in _SENTENCE_END.finditer(text)]
            text = text[: ends[-1]] if ends else text
        return text


def _open_processor(folder: Path, kind: CaptionerKind) -> Any:
    """The processor with the image processor that needs no torchvision; for the Qwen models without the one for videos."""
    import transformers
    from transformers import AutoTokenizer
    from transformers.processing_utils import ProcessorMixin

    images = getattr(transformers, kind.images).from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if kind.pads_left:
        tokenizer.padding_side = "left"
    whole = getattr(transformers, kind.processor)
    values, _ = whole.get_processor_dict(folder, local_files_only=True)
    values = {name: value for name, value in values.items() if name not in ("image_processor", "video_processor")}
    if "video_processor" not in whole.get_attributes():
        processor = whole.from_args_and_dict([images, tokenizer], values)
        processor.chat_template = processor.chat_template or tokenizer.chat_template
        return processor

    class Still(whole):  # type: ignore[misc, valid-type]
        """Its processor for pictures alone: the one for videos cannot be made without torchvision."""

        def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
            for name in ("image_token", "video_token"):
                token = getattr(tokenizer, name, None) or f"<|{name.removesuffix('_token')}_pad|>"
                setattr(self, name, token)
                setattr(self, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return Still(images, tokenizer, chat_template=values.get("chat_template") or tokenizer.chat_template)


def _joined(prepared: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Batches of one as one batch."""
    import torch

    return {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}


def _refuse_gaps(model: Any, missing: Collection[str], title: str) -> None:
    """transformers fills weights that no file has with random numbers and goes on: nonsense captions, and no error.

    Raises RefusedFile if that is more than a table of constants that older versions did not write.
    """
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    gap = sum(sizes.get(name, 0) for name in missing)
    if gap > _MAX_GAP * sum(sizes.values()):
        raise RefusedFile(f"The files of {title} lack {len(missing)} of its weights. Delete it and download it again.")


def _ids_that_end(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer or stand behind it."""
    ends = model.generation_config.eos_token_id
    known = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id, tokenizer.sep_token_id]
    return {one for one in [*known, tokenizer.pad_token_id] if one is not None}


def _chosen_device(name: str) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise SafelightError("No NVIDIA GPU can be used by torch here. Set the device to auto or cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _chosen_dtype(folder: Path, place: torch.device) -> torch.dtype:
    """16 bits on a GPU; on the CPU 32, or 16 where the memory is too small for that. Raises SafelightError if none fits."""
    import psutil
    import torch

    num_weights = _num_weights(folder)
    if place.type == "cuda":
        half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        free, choices = torch.cuda.mem_get_info(place)[0], [half]
    else:
        free, choices = psutil.virtual_memory().available, [torch.float32, torch.bfloat16]
    for dtype in choices:
        if num_weights * dtype.itemsize * _ROOM < free:
            return dtype
    raise SafelightError(
        f"The captioner needs about {math.ceil(num_weights * 2 * _ROOM / 1e9)} GB of memory, and {free / 1e9:.0f} GB are "
        f"free {'on the GPU' if place.type == 'cuda' else 'here'}. Close other programs, or take a smaller captioner."
    )


def _num_weights(folder: Path) -> int:
    """How many numbers the weights hold, by the headers of the files."""
    from security.weights import check_safetensors

    return sum(
        math.prod(tensor.shape)
        for file in folder.glob("*.safetensors")
        for tensor in check_safetensors(file).tensors.values()
    )


def _device_words(place: torch.device, dtype: torch.dtype) -> str:
    import torch

    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
    return f"{name}, {'fp32' if dtype is torch.float32 else 'bf16' if dtype is torch.bfloat16 else 'fp16'}"
