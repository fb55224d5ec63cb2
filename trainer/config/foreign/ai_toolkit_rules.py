"""Settings of ai-toolkit that only make sense together: network, datasets, rates, lengths, samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from trainer.config.foreign.sd_scripts_rules import optimizer_arg
from trainer.config.foreign.taking import (
    OFF,
    Taking,
    WrongValueError,
    as_list,
    as_number,
    as_switch,
    as_text,
    as_whole,
    number,
    text,
    whole,
)
from trainer.config.foreign.words import attempt, one_rate, take_folder, take_optimizer, take_schedule

MAX_RANK = 256
ADAPTERS: dict[str, str] = {"lora": "lora", "locon": "locon", "dora": "dora", "lokr": "lokr"}


# -- network --


def network(taking: Taking) -> None:
    """Kind, rank and alpha; a convolution's rank makes a LoRA a LoCon."""
    kind = str(taking.value("network.type", "lora")).lower()
    has_convolutions = taking.value("network.conv") is not None and str(taking.value("network.conv")) != "0"
    ours = ADAPTERS.get(kind, "")
    if ours == "lora" and has_convolutions:
        ours = "locon"
    if "network.type" in taking.given:
        if ours:
            taking.take("network.type", "lora.adapter", ours)
        else:
            taking.refuse("network.type", "there is no such adapter here; a plain LoRA is trained instead")
    full = kind == "lokr" and str(taking.value("network.lokr_full_rank", True)).lower() in ("true", "1")
    _ranks(taking, full)
    for key in ("network.lokr_full_rank", "network.lokr_factor"):
        if key in taking.given and kind != "lokr":
            taking.pass_over(key, "only LoKr reads it")
    attempt(taking, "network.lokr_factor", whole("lora.lokr_factor"))
    if kind == "lokr" and not taking.is_done("network.lokr_full_rank"):
        reason = f"{MAX_RANK} is the highest rank; theirs makes the second factor of a LoKr a whole matrix"
        if full and "network.lokr_full_rank" in taking.given:
            taking.take("network.lokr_full_rank", "lora.rank", MAX_RANK, reason)
        elif full:
            taking.left_out("network.lokr_full_rank", True, "lora.rank", MAX_RANK)
        else:
            taking.pass_over("network.lokr_full_rank", OFF)
        if full:
            taking.ours["lora.alpha"] = float(MAX_RANK)
    if "network.transformer_only" in taking.given:
        taking.pass_over("network.transformer_only", "lora.targets says which layers learn")
    _network_arguments(taking)
    if taking.value("model.lora_path") is not None:
        attempt(taking, "model.lora_path", _merge_first)


def _ranks(taking: Taking, full: bool) -> None:
    rank_key = next((key for key in ("network.rank", "network.linear") if taking.value(key) is not None), "")
    for key in ("network.rank", "network.linear", "network.linear_alpha", "network.alpha"):
        if full and key in taking.given and not taking.is_done(key):
            taking.pass_over(key, "lokr_full_rank comes before it")
    if not full:
        attempt(taking, rank_key, whole("lora.rank"))
        if "network.linear" in taking.given and not taking.is_done("network.linear"):
            taking.pass_over("network.linear", "network.rank comes before it")
        attempt(taking, "network.linear_alpha", number("lora.alpha"))
        if "lora.alpha" not in taking.ours and "network.alpha" in taking.given:
            attempt(taking, "network.alpha", number("lora.alpha"))
        elif "network.alpha" in taking.given and not taking.is_done("network.alpha"):
            taking.pass_over("network.alpha", "network.linear_alpha comes before it")
        if "lora.alpha" not in taking.ours and rank_key:
            taking.left_out("network.alpha", 1.0, "lora.alpha", 1.0)
    if str(taking.value("network.conv", 0)) == "0":
        for key in ("network.conv", "network.conv_alpha"):
            if key in taking.given and not taking.is_done(key):
                taking.pass_over(key, "convolutions are left alone")
    attempt(taking, "network.conv", whole("lora.conv_rank"))
    attempt(taking, "network.conv_alpha", number("lora.conv_alpha"))


def _network_arguments(taking: Taking) -> None:
    key = "network.network_kwargs"
    given = taking.value(key)
    if given is None or taking.is_done(key):
        return
    if not isinstance(given, dict):
        taking.refuse(key, "is not a group of settings")
        return
    for name, value in given.items():
        taking.part(f"{key}: {name}", value)
        if name in ("only_if_contains", "ignore_if_contains"):
            try:
                layer_names(taking, f"{key}: {name}", value)
            except WrongValueError as error:
                taking.refuse(f"{key}: {name}", f"{error}, so it can't be read")
        else:
            taking.refuse(f"{key}: {name}", "this argument is not offered for any adapter here")
    taking.settle(key)


def layer_names(taking: Taking, key: str, value: Any) -> None:
    """Texts that a layer's name must hold, or must not."""
    ours = "lora.target_patterns" if key.endswith("only_if_contains") else "lora.exclude_patterns"
    lines = [re.escape(as_text(part)) for part in as_list(value)]
    if lines:
        taking.take(key, ours, lines, "a text in a name as a pattern")
    else:
        taking.pass_over(key, "is empty there")


def _merge_first(taking: Taking, key: str, value: Any) -> None:
    taking.take(key, "lora.merge_first", [f"1 {as_text(value)}"], "merged into the base before training")


# -- datasets --

FIRST: dict[str, str] = {
    "caption_dropout_rate": "dataset.caption_dropout_rate",
    "keep_tokens": "dataset.keep_tokens",
    "shuffle_tokens": "dataset.shuffle_tags",
    "token_dropout_rate": "dataset.tag_dropout_rate",
    "flip_x": "dataset.flip_augmentation",
    "buckets": "dataset.aspect_buckets",
    "num_repeats": "dataset.repeats",
    "trigger_word": "dataset.trigger_word",
    "batch_size": "training.batch_size",
}
"""What is taken from the first dataset as it is."""
ALWAYS = {
    "cache_latents": "encoded pictures are kept on disk by themselves",
    "cache_latents_to_disk": "encoded pictures are kept on disk by themselves",
    "cache_text_embeddings": "text that isn't trained on is encoded once",
    "type": "the folder is what counts",
    "bucket_tolerance": "sides of buckets are as fine as the model allows",
    "num_workers": "pictures are encoded once, so nothing waits for loading",
    "prefetch_factor": "pictures are encoded once, so nothing waits for loading",
    "is_reg": "says what the folder is for",
}
HARMLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(["network_weight", "loss_multiplier", "scale", "num_frames", "random_triggers_max"], (1, 1.0)),
    **dict.fromkeys(["shrink_video_to_frames", "audio_preserve_pitch", "trim_auto_frame_count_tail"], (True, False)),
    **dict.fromkeys(["full_size_control_images", "replay_transforms"], (True,)),
    "num_controls_from_same_folder": (1,),
    "fps": (24, 16),
    "control_transparent_color": ([0, 0, 0],),
    "mask_min_value": (0.1, 0.0),
    "guidance_type": ("targeted",),
}
"""Values that do nothing to pictures; any other of these keys, or an unknown one that is not empty, is told."""


def datasets(taking: Taking) -> None:
    """Folders; sizes of the first, its options, and what differs in the others."""
    entries = taking.value("datasets")
    if entries is None or taking.is_done("datasets"):
        return
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        taking.refuse("datasets", "is not a list of datasets")
        return
    taking.settle("datasets")
    trained = [entry for entry in entries if not entry.get("is_reg")]
    prior = [
        str(entry.get("folder_path") or entry.get("dataset_path") or "") for entry in entries if entry.get("is_reg")
    ]
    if prior:
        taking.part("datasets: is_reg", prior)
        taking.take("datasets: is_reg", "dataset.regularisation", prior)
    if not trained:
        return
    first = trained[0]
    folders: dict[str, float] = {}
    sides: list[int] = []
    for entry in trained:
        folder = str(entry.get("folder_path") or entry.get("dataset_path") or "")
        try:
            sides += [as_whole(side) for side in as_list(entry.get("resolution", 512))]
            folders.setdefault(folder, as_number(entry.get("num_repeats", 1) or 1))
        except WrongValueError as error:
            taking.part("datasets: resolution", entry.get("resolution"))
            taking.refuse("datasets: resolution", f"or num_repeats {error}, so it can't be read")
    _folders(taking, folders)
    _sides(taking, sides)
    for name, value in first.items():
        _option(taking, name, value)
    for position, entry in enumerate(trained[1:], start=2):
        for name in entry.keys() - {"folder_path", "dataset_path", "resolution", "num_repeats", "is_reg"}:
            if name not in first or entry[name] != first[name]:
                taking.part(f"dataset {position}: {name}", entry[name])
                taking.refuse(
                    f"dataset {position}: {name}", "one value holds for all pictures, and the first dataset's is taken"
                )


def _folders(taking: Taking, folders: Mapping[str, float]) -> None:
    if not folders:
        return
    names = list(folders)
    taking.part("datasets: folder_path", names[0])
    take_folder(taking, "datasets: folder_path", names[0])
    if len(names) > 1:
        first = folders[names[0]] or 1.0
        lines = [f"{folders[name] / first:.2f}".rstrip("0").rstrip(".") + f" {name}" for name in names[1:]]
        taking.part("datasets: further folders", names[1:])
        taking.take(
            "datasets: further folders", "dataset.more", lines, "the weight is their repeats beside the first's"
        )


def _sides(taking: Taking, sides: list[int]) -> None:
    distinct = sorted(set(sides), reverse=True)
    if not distinct:
        return
    taking.part("datasets: resolution", distinct)
    taking.take("datasets: resolution", "dataset.resolution", distinct[0], "the largest" if len(distinct) > 1 else "")
    if len(distinct) > 1:
        taking.part("datasets: further resolutions", distinct[1:])
        taking.take("datasets: further resolutions", "dataset.more_resolutions", distinct[1:])


def _option(taking: Taking, name: str, value: Any) -> None:
    key = f"datasets: {name}"
    if taking.is_done(key) or name in ("folder_path", "dataset_path", "resolution"):
        return
    taking.part(key, value)
    try:
        if value is None or (value in ("", [], False) and name not in FIRST):
            taking.pass_over(key, OFF)
        elif name in ALWAYS:
            taking.pass_over(key, ALWAYS[name])
        elif name in FIRST:
            _take_first(taking, key, FIRST[name], value)
        elif name == "caption_ext":
            ending = as_text(value)
            taking.take(key, "dataset.caption_extension", ending if ending.startswith(".") else f".{ending}")
        elif name == "random_crop":
            taking.take(key, "dataset.random_crops", 4, "four crops of each picture are cached and taken in turn")
        elif name in ("mask_path", "alpha_mask"):
            taking.refuse(key, "masks lie in the dataset itself; draw or import them there")
        elif name == "square_crop":
            taking.take(key, "dataset.aspect_buckets", False)
        elif value in HARMLESS.get(name, ()):
            taking.pass_over(key, "does nothing to pictures")
        else:
            taking.refuse(key, "pictures and captions of a dataset are not changed in this way")
    except WrongValueError as error:
        taking.refuse(key, f"{error}, so it can't be read")


def _take_first(taking: Taking, key: str, ours: str, value: Any) -> None:
    read: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(["dataset.shuffle_tags", "dataset.flip_augmentation", "dataset.aspect_buckets"], as_switch),
        **dict.fromkeys(["dataset.keep_tokens", "dataset.repeats", "training.batch_size"], as_whole),
        "dataset.trigger_word": as_text,
    }
    taking.take(key, ours, read[ours](value) if ours in read else as_number(value))


# -- rates and lengths --


def rates(taking: Taking) -> None:
    """The optimizer with its parameters; `lr` holds for what has no rate of its own."""
    attempt(taking, "train.loss_type", _loss)
    keys = ("train.lr", "train.unet_lr", "train.text_encoder_lr", "train.optimizer_params")
    name = taking.value("train.optimizer")
    if name is not None and not take_optimizer(taking, "train.optimizer", str(name), keys):
        return
    attempt(taking, "train.optimizer_params", _optimizer_parameters)
    attempt(taking, "train.unet_lr", number("optimizer.learning_rate"))
    if "optimizer.learning_rate" in taking.ours and "train.lr" in taking.given:
        taking.pass_over("train.lr", "train.unet_lr comes before it")
    attempt(taking, "train.lr", number("optimizer.learning_rate"))
    attempt(taking, "train.text_encoder_lr", number("optimizer.text_encoder_learning_rate"))
    common = taking.ours.get("optimizer.learning_rate")
    if common is None:
        taking.left_out("train.lr", 1e-6, "optimizer.learning_rate", 1e-6)
    elif taking.ours.get("lora.train_text_encoder") and "optimizer.text_encoder_learning_rate" not in taking.ours:
        taking.left_out("train.text_encoder_lr", common, "optimizer.text_encoder_learning_rate", common)
    one_rate(taking, "train.text_encoder_lr")


def _loss(taking: Taking, key: str, value: Any) -> None:
    kinds = {"mse": "l2", "mae": "l1"}
    if as_text(value) in kinds:
        taking.take(key, "loss.type", kinds[as_text(value)])
    else:
        taking.refuse(key, "the losses here are l2, l1, huber and smooth_l1: loss.type")


def _optimizer_parameters(taking: Taking, key: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise WrongValueError("is not a group of settings")
    for name, part in value.items():
        label = f"{key}: {name}"
        taking.part(label, part)
        optimizer_arg(taking, label, name, part)
    taking.settle(key)


def schedule(taking: Taking) -> None:
    """Shape of the learning rate, and its warm-up if it has one."""
    attempt(taking, "train.lr_scheduler", take_schedule)
    key = "train.lr_scheduler_params"
    given = taking.value(key)
    if given is None or taking.is_done(key):
        return
    if not isinstance(given, dict):
        taking.refuse(key, "is not a group of settings")
        return
    for name, value in given.items():
        taking.part(f"{key}: {name}", value)
        if name in ("num_warmup_steps", "warmup_steps"):
            try:
                taking.take(f"{key}: {name}", "optimizer.warmup_steps", as_whole(value))
            except WrongValueError as error:
                taking.refuse(f"{key}: {name}", f"{error}, so it can't be read")
        else:
            taking.refuse(f"{key}: {name}", "this argument of a schedule is not offered")
    taking.settle(key)


def accumulation(taking: Taking) -> None:
    """`gradient_accumulation` adds up passes within a step, `gradient_accumulation_steps` counts them as steps."""
    attempt(taking, "train.gradient_accumulation", whole("training.gradient_accumulation_steps"))
    key = "train.gradient_accumulation_steps"
    if taking.value(key) is None or taking.is_done(key):
        return
    try:
        window = as_whole(taking.given[key])
    except WrongValueError as error:
        taking.refuse(key, f"{error}, so it can't be read")
        return
    if window == 1:
        taking.pass_over(key, OFF)
    elif window < 1:
        taking.refuse(key, "a step for a whole epoch is not offered")
    else:
        taking.take(key, "training.gradient_accumulation_steps", window)


def length(taking: Taking) -> None:
    """Their steps; with `gradient_accumulation_steps` they count passes, so ours are fewer."""
    window = str(taking.value("train.gradient_accumulation_steps", 1))
    passes = int(window) if window.isdecimal() and int(window) > 1 else 1

    def take(state: Taking, key: str, value: Any) -> None:
        steps = as_whole(value)
        reason = f"theirs counts passes, {passes} of which make a step" if passes > 1 else ""
        state.take(key, "training.max_train_steps", max(1, steps // passes), reason)

    attempt(taking, "train.steps", take)
    if taking.value("train.steps") is None:
        taking.left_out("train.steps", 1000, "training.max_train_steps", 1000)


# -- samples and the rest --


def samples(taking: Taking) -> None:
    """Prompts as texts, or as groups that may differ from the common settings."""
    off = str(taking.value("train.disable_sampling", False)).lower() in ("true", "1")
    if "train.disable_sampling" in taking.given and not taking.is_done("train.disable_sampling"):
        taking.pass_over("train.disable_sampling", "no samples are taken over" if off else OFF)
    for key in ("sample.prompts", "sample.samples", "sample.sample_every"):
        if off and key in taking.given and not taking.is_done(key):
            taking.pass_over(key, "sampling is switched off there")
    prompts: list[str] = []
    for key in ("sample.prompts", "sample.samples"):
        if taking.value(key) is None or taking.is_done(key):
            continue
        for entry in as_list(taking.given[key]) if not isinstance(taking.given[key], dict) else []:
            prompts.append(str(entry.get("prompt", "") if isinstance(entry, dict) else entry).strip())
            own = sorted(entry.keys() - {"prompt"}) if isinstance(entry, dict) else []
            for name in own:
                if not taking.is_done(f"{key}: {name}"):
                    taking.part(f"{key}: {name}", entry[name])
                    taking.refuse(f"{key}: {name}", "holds for one prompt there; here all prompts share it")
        lines = [" ".join(prompt.split()) for prompt in prompts if prompt]
        taking.take(key, "sample.prompts", lines)
    attempt(taking, "sample.sample_every", whole("sample.every_n_steps"))


def validation(taking: Taking) -> None:
    """Pictures that are picked by hand there."""
    key = "train.validation_config"
    given = taking.value(key)
    if given is None or taking.is_done(key):
        return
    items = given.get("validation_items") if isinstance(given, dict) else None
    if items:
        taking.refuse(
            key, "held-out pictures are a folder or a share of the dataset: validation.folder, validation.split"
        )
    else:
        taking.pass_over(key, "no pictures are held out")


def trained_embedding(taking: Taking) -> None:
    """A word that is learned beside the LoRA."""
    attempt(taking, "embedding.trigger", text("embedding.word"))
    attempt(taking, "embedding.tokens", whole("embedding.num_vectors"))
    attempt(taking, "embedding.init_words", text("embedding.init_words"))
    for key in ("embedding.save_format", "embedding.trigger_class_name"):
        if taking.value(key) is not None and not taking.is_done(key):
            taking.pass_over(key, "embeddings are saved as safetensors")
    if taking.ours.get("embedding.word"):
        attempt(taking, "train.embedding_lr", number("embedding.learning_rate"))
    elif "train.embedding_lr" in taking.given and not taking.is_done("train.embedding_lr"):
        taking.pass_over("train.embedding_lr", "no embedding is trained")
