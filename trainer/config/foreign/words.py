"""What several programs have in common: names of optimizers and schedules, reasons, and how long a run is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from trainer.config.foreign.taking import Taking, WrongValueError, as_number, as_text

OPTIMIZERS: dict[str, tuple[str, str]] = {
    "adamw": ("adamw", ""),
    "adamw8bit": ("adamw_8bit", ""),
    "adamw8": ("adamw_8bit", ""),
    "pagedadamw8bit": ("adamw_8bit", "the states of a LoRA are too small to page them out"),
    "pagedadamw": ("adamw", "the states of a LoRA are too small to page them out"),
    "pagedadamw32bit": ("adamw", "the states of a LoRA are too small to page them out"),
    "adam": ("adamw", "AdamW without weight decay is Adam"),
    "adam8bit": ("adamw_8bit", "AdamW without weight decay is Adam"),
    "adam8": ("adamw_8bit", "AdamW without weight decay is Adam"),
    "adamwadv": ("adamw", "their own variant of AdamW"),
    "lion": ("lion", ""),
    "lion8bit": ("lion", "there is no 8-bit Lion here"),
    "pagedlion8bit": ("lion", "there is no 8-bit Lion here"),
    "lionadv": ("lion", "their own variant of Lion"),
    "prodigy": ("prodigy", ""),
    "prodigy8bit": ("prodigy", "there is no 8-bit Prodigy here"),
    "prodigyopt": ("prodigy", ""),
    "prodigyadv": ("prodigy", "their own variant of Prodigy"),
    "prodigyplusschedulefree": ("prodigy_plus_schedule_free", ""),
    "dadaptation": ("prodigy", "Prodigy is the successor of D-Adaptation and finds the rate in the same way"),
    "dadaptadam": ("prodigy", "Prodigy is the successor of D-Adaptation and finds the rate in the same way"),
    "dadaptadampreprint": ("prodigy", "Prodigy is the successor of D-Adaptation and finds the rate in the same way"),
    "dadaptationadam": ("prodigy", "Prodigy is the successor of D-Adaptation and finds the rate in the same way"),
    "adafactor": ("adafactor", ""),
    "came": ("came", ""),
    "came8bit": ("came", "there is no 8-bit CAME here"),
    "muon": ("muon", ""),
    "muonadv": ("muon", "their own variant of Muon"),
    "adamwschedulefree": ("schedule_free_adamw", ""),
    "schedulefreeadamw": ("schedule_free_adamw", ""),
    "radam": ("radam", ""),
}
"""Letters and digits of an optimizer's name, without its module -> our name, and what is different."""

SCHEDULES: dict[str, tuple[str, str]] = {
    "constant": ("constant", ""),
    "constant_with_warmup": ("constant", ""),
    "linear": ("linear", ""),
    "cosine": ("cosine", ""),
    "cosine_with_min_lr": ("cosine", ""),
    "cosine_annealing": ("cosine", "their annealing within one cycle is this cosine"),
    "cosine_with_restarts": ("cosine_with_restarts", ""),
    "cosine_with_hard_restarts": ("cosine_with_restarts", "it falls to the floor in each cycle"),
    "polynomial": ("polynomial", ""),
    "rex": ("rex", ""),
}
"""Their word in small letters -> our schedule, and what is different."""

NO_SCHEDULE = "there is no such schedule here; the learning rate stays constant"
ATTENTION = "attention is PyTorch's own, which takes the fastest kernel of the machine"
ELSEWHERE = "runs lie in the workspace"
OWN_LOG = "every run keeps its own log and curves"
PUBLISHING = "files go to a hub only when you publish them"
WHOLE_STATE = "a checkpoint here always holds everything that resuming needs"
WORKERS = "pictures are encoded once, so nothing waits for loading"
ONE_GPU = "a run uses one GPU"
BASE_PRECISION = "fewer bits for the base are chosen in memory.base_format: fp8, int8 or nf4"
OFFLOADING = "what an optimizer remembers of a LoRA is small and stays in the GPU; memory.offload moves the base"
OTHER_FAMILY = "is for models that Safelight does not train; it trains Stable Diffusion 1.x and SDXL"
NO_EMA = "there is no moving average of the weights"
KEYS_APART = "keys and tokens are never part of settings; put them where `python launch.py tokens` says"

FETCH = "fetch it on the Models tab or with `python launch.py fetch {}`"


def plain_name(name: str) -> str:
    """`torch.optim.AdamW` -> `adamw`."""
    return re.sub(r"[^a-z0-9]", "", name.rpartition(".")[2].lower())


def take_optimizer(taking: Taking, key: str, name: str, rate_keys: tuple[str, ...]) -> bool:
    """Takes the optimizer. If there is none like it, its learning rates are worth nothing to another: they are refused."""
    ours, difference = OPTIMIZERS.get(plain_name(name), ("", ""))
    if ours and taking.take(key, "optimizer.name", ours, difference):
        return True
    if not taking.is_done(key):
        taking.refuse(key, "there is no such optimizer here; choose one, and a learning rate that suits it")
    for rate_key in rate_keys:
        if rate_key in taking.given and not taking.is_done(rate_key):
            taking.refuse(rate_key, f"it is a step size of {name[:80]} and would be wrong for another optimizer")
    return False


def take_schedule(taking: Taking, key: str, value: Any) -> None:
    """Takes the shape of the learning rate."""
    ours, difference = SCHEDULES.get(as_text(value).strip().lower(), ("", ""))
    if ours:
        taking.take(key, "optimizer.schedule", ours, difference)
    else:
        taking.refuse(key, NO_SCHEDULE)


def take_base(taking: Taking, key: str, value: Any) -> None:
    """Takes the base model: by its name in the library if it is there, else the path as it stands."""
    path = as_text(value).strip()
    forms = [path.lower(), re.split(r"[/\\]", path.rstrip("/\\"))[-1].lower()]
    known = next((taking.around.models[form] for form in forms if form in taking.around.models), None)
    if known is not None:
        reason = "" if known == path else "that is its name in the library"
        taking.take(key, "model.base", known, reason)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        taking.take(key, "model.base", path, f"is not in the library; {FETCH.format(path)}")
    else:
        taking.take(key, "model.base", path)


def take_folder(taking: Taking, key: str, value: Any, *, given: Any = None) -> None:
    """Takes the folder that is trained on, and says so if there is none such here."""
    name = as_text(value)
    taking.take(key, "dataset.folder", name, taking.around.folder_fault(name), given=given)


def name_of(text: str) -> str:
    """A run's name made of a text: letters, digits, dot, dash and underscore."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "_", text.strip()).lstrip("._-")[:64]
    return cleaned or "imported"


def take_name(taking: Taking, key: str, value: Any) -> None:
    """Takes the name of the run."""
    given = as_text(value)
    name = name_of(given)
    taking.take(key, "name", name, "" if name == given else "a name has letters, digits, dot, dash and underscore")


def steps_per_epoch(taking: Taking) -> int | None:
    """Optimizer steps of an epoch with the settings as taken so far; None when the dataset isn't here."""
    values = taking.values()
    samples = taking.around.samples(values)
    if not samples:
        return None
    batch, window = int(values["training.batch_size"]), int(values["training.gradient_accumulation_steps"])
    return max(1, math.ceil(math.ceil(samples / batch) / window))


def epochs_as_steps(taking: Taking, key: str, ours: str) -> None:
    """Takes a number of epochs as steps, if the pictures of an epoch are known."""
    try:
        epochs = as_number(taking.given[key])
    except WrongValueError as error:
        taking.refuse(key, f"{error}, so it can't be read")
        return
    per_epoch = steps_per_epoch(taking)
    if epochs <= 0:
        taking.pass_over(key, "is 0 there, so it does nothing")
    elif per_epoch is None:
        taking.refuse(
            key,
            f"runs are counted in steps, and the dataset isn't here to count them: set {ours} to "
            "epochs x pictures x repeats / batch",
        )
    else:
        steps = max(1, round(epochs * per_epoch))
        taking.take(key, ours, steps, f"runs are counted in steps: an epoch of this dataset has {per_epoch}")


def take_share_of_steps(taking: Taking, key: str, ours: str, share: float) -> None:
    """Takes a share of the run as a number of steps. The length must have been taken before."""
    steps = taking.ours.get("training.max_train_steps")
    if share == 0:
        taking.take(key, ours, 0)
    elif steps is None:
        taking.refuse(key, f"it is a share of the run, whose length isn't known: set {ours} in steps")
    else:
        taking.take(key, ours, round(share * steps), f"{share:.3g} of {steps} steps")


def attempt(taking: Taking, key: str, take: Callable[[Taking, str, Any], None]) -> None:
    """Applies a rule to a key that is given and not dealt with, in a finish."""
    if taking.value(key) is None or taking.is_done(key):
        return
    try:
        take(taking, key, taking.given[key])
    except WrongValueError as error:
        taking.refuse(key, f"{error}, so it can't be read")


def one_rate(taking: Taking, text_key: str) -> None:
    """Prodigy finds one step size for everything, so the text encoder's factor must be that of the rest."""
    if not str(taking.ours.get("optimizer.name", "")).startswith("prodigy"):
        return
    ours = "optimizer.text_encoder_learning_rate"
    rate = taking.ours.get("optimizer.learning_rate")
    if rate is not None and taking.values()[ours] != rate:
        if taking.value(text_key) is None or taking.ours.get(ours) is None:
            taking.ours[ours] = rate
        else:
            taking.replace(ours, rate, "Prodigy finds one step size for everything")
