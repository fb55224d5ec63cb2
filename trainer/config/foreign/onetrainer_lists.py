"""Lists in OneTrainer's configurations: additional embeddings, concepts and samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.config.foreign.onetrainer_concepts import take_concepts
from trainer.config.foreign.taking import OFF, Taking, WrongValueError, as_number, as_text, as_whole, number
from trainer.config.foreign.words import attempt


def embedding(taking: Taking) -> None:
    """A word that is learned beside the LoRA: their first additional embedding."""
    key = "additional_embeddings"
    words = taking.value(key, [])
    active = (
        [word for word in words if isinstance(word, dict) and word.get("train", True)]
        if isinstance(words, list)
        else []
    )
    if key in taking.given and not active:
        taking.pass_over(key, OFF if words == [] else "none of them is trained")
    elif active:
        first = active[0]
        taking.settle(key)
        for name, ours, read in (
            ("placeholder", "embedding.word", as_text),
            ("token_count", "embedding.num_vectors", as_whole),
            ("initial_embedding_text", "embedding.init_words", as_text),
        ):
            if first.get(name) not in (None, "", "*"):
                taking.part(f"{key}: {name}", first[name])
                try:
                    taking.take(f"{key}: {name}", ours, read(first[name]))
                except WrongValueError as error:
                    taking.refuse(f"{key}: {name}", f"{error}, so it can't be read")
        for position in range(1, len(active)):
            taking.part(f"{key}: number {position + 1}", active[position].get("placeholder"))
            taking.refuse(f"{key}: number {position + 1}", "one word is learned beside a LoRA")
    if "embedding" in taking.given:
        taking.pass_over("embedding", "is only read when an embedding alone is trained")
    if active:
        attempt(taking, "embedding_learning_rate", number("embedding.learning_rate"))
    for name in (
        "embedding_learning_rate",
        "preserve_embedding_norm",
        "embedding_weight_dtype",
        "bundle_additional_embeddings",
    ):
        if name in taking.given and not taking.is_done(name):
            taking.pass_over(
                name, "says how an embedding is kept, which is fixed here" if active else "no embedding is trained"
            )


def concepts(taking: Taking) -> None:
    """The folders to learn from, with how their pictures and captions are used; the first one's options hold for all."""
    _named_file(taking, "concept_file_name", "concepts", "its folders; name the dataset yourself")
    entries = taking.value("concepts", [])
    if "concepts" not in taking.given or not isinstance(entries, list):
        if "concepts" in taking.given:
            taking.refuse("concepts", "is not a list")
        return
    taking.settle("concepts")
    active = [entry for entry in entries if isinstance(entry, dict) and entry.get("enabled", True)]
    take_concepts(taking, active, len(entries) - len(active))


def samples(taking: Taking) -> None:
    """Prompts; what differs between them is told, since ours share size, seed and steps."""
    _named_file(taking, "sample_definition_file_name", "samples", "its prompts; write them into sample.prompts")
    entries = taking.value("samples", [])
    if "samples" not in taking.given:
        return
    if not isinstance(entries, list):
        taking.refuse("samples", "is not a list")
        return
    taking.settle("samples")
    active = [entry for entry in entries if isinstance(entry, dict) and entry.get("enabled", True)]
    prompts = [str(entry.get("prompt", "")).strip() for entry in active]
    taking.part("samples: prompt", prompts)
    taking.take("samples: prompt", "sample.prompts", [prompt for prompt in prompts if prompt])
    fields: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
        ("negative_prompt", "sample.negative_prompt", as_text),
        ("width", "sample.width", as_whole),
        ("height", "sample.height", as_whole),
        ("seed", "sample.seed", as_whole),
        ("diffusion_steps", "sample.num_inference_steps", as_whole),
        ("cfg_scale", "sample.guidance_scale", as_number),
    )
    for name, ours, read in fields:
        values = [entry[name] for entry in active if entry.get(name) not in (None, "")]
        if not values:
            continue
        taking.part(f"samples: {name}", values[0])
        try:
            several = any(value != values[0] for value in values)
            taking.take(
                f"samples: {name}", ours, read(values[0]), "all prompts share the first one's" if several else ""
            )
        except WrongValueError as error:
            taking.refuse(f"samples: {name}", f"{error}, so it can't be read")


def _named_file(taking: Taking, key: str, inside: str, what: str) -> None:
    if taking.value(key) is None or taking.is_done(key):
        return
    if taking.given.get(inside):
        taking.pass_over(key, f"the file has its {inside} in itself")
    else:
        taking.refuse(key, f"names another file for {what}")
