"""Publishes a dataset on Hugging Face: clean copies of its pictures, captions as files and as a table, a dataset card."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from security.errors import Cancelled, RefusedFile, SafelightError
from security.images import clean_copy
from security.policy import VERSION
from security.redaction import refuse_secrets
from security.roots import Root
from security.secrets import Secret
from security.upload import UploadOrder, upload_folder
from trainer.dataset.captions import split_tags
from trainer.dataset.studio import Dataset, Studio

CARD, TABLE = "README.md", "metadata.jsonl"
"""The card, and the table that the hub's viewer and the `datasets` library read: a picture and its caption a line."""
MAX_DESCRIPTION = 20_000
LICENCES: dict[str, str] = {
    "cc0-1.0": "CC0 1.0: everything is allowed",
    "cc-by-4.0": "CC BY 4.0: everything, with your name",
    "cc-by-sa-4.0": "CC BY-SA 4.0: with your name, under the same terms",
    "cc-by-nc-4.0": "CC BY-NC 4.0: with your name, not for money",
    "cc-by-nc-sa-4.0": "CC BY-NC-SA 4.0: with your name, not for money, under the same terms",
    "mit": "MIT",
    "apache-2.0": "Apache 2.0",
    "openrail": "OpenRAIL: everything but the listed harmful uses",
    "other": "Another one, told in the description",
}
"""Licences as the hub names them, with what they mean. None of them is the default: only the owner can choose."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class PublishOptions:
    """What is published where. `licence`: a key of LICENCES, or empty for none."""

    repo: str
    private: bool = True
    replace: bool = False
    licence: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        """Raises RefusedName or SafelightError for values that cannot be."""
        self.order("")
        if self.licence and self.licence not in LICENCES:
            raise SafelightError(f"{self.licence[:40]!r} is not a licence of the list: {', '.join(LICENCES)}.")
        if len(self.description) > MAX_DESCRIPTION:
            raise SafelightError(
                f"The description has {len(self.description)} characters; {MAX_DESCRIPTION} are allowed."
            )

    def order(self, message: str) -> UploadOrder:
        """The upload."""
        return UploadOrder(self.repo, self.private, self.replace, message)


class Control(Protocol):
    """Where the work reports to; `trainer.tasks.TaskControl` is one."""

    def progress(self, done: int, total: int, text: str = "") -> None: ...
    def skip(self, name: str, reason: str) -> None: ...
    def cancelled(self) -> bool: ...


def publish_dataset(
    studio: Studio, dataset: Dataset, options: PublishOptions, token: Secret, endpoint: str, control: Control
) -> str:
    """Makes the copies, sends them, and returns the report. The dataset itself stays as it is.

    Raises SafelightError: nothing to publish, a token among the texts, or what `upload_folder` raises.
    """
    with studio.staging() as staging:
        num_pictures = prepare_upload(dataset, options, staging, control)
        done = upload_folder(
            staging,
            options.order(f"{num_pictures} pictures with captions, from Safelight"),
            token,
            endpoint,
            progress=lambda sent, total: control.progress(sent, total, f"Sending to {options.repo}"),
            cancelled=control.cancelled,
        )
    kind = "private" if options.private else "public"
    return f"{num_pictures:,} pictures are on {done.page} now ({kind}, commit {done.commit[:8]})."


def prepare_upload(dataset: Dataset, options: PublishOptions, folder: Path, control: Control) -> int:
    """Writes what will be published into an empty folder and returns the number of pictures.

    Pictures lose everything but their pixels (place, camera, comments). Unreadable ones are left out and told.
    """
    names = dataset.pictures()
    captions, faults = dataset.read_captions()
    if not names:
        raise SafelightError(f"{dataset.name} has no pictures. Bring some in first.")
    rows: list[dict[str, str]] = []
    root = Root(folder)
    for number, name in enumerate(names):
        if control.cancelled():
            raise Cancelled("Cancelled: nothing was published.")
        control.progress(number, len(names), "Making clean copies")
        if name in faults:
            control.skip(name, f"published without its caption: {faults[name]}")
        try:
            name.encode()
            target = _copied(dataset.path / name, name, root)
        except UnicodeEncodeError:
            control.skip(name, "its name is no UTF-8, which the hub could not show")
        except RefusedFile as error:
            control.skip(name, str(error))
        else:
            text = captions.get(name, "")
            refuse_secrets(text, f"The caption of {name}")
            rows.append({"file_name": target, "text": text})
            if name in captions:
                root.write_text_atomic(root.child(*target.split("/")).with_suffix(".txt"), text + "\n")
    if not rows:
        raise SafelightError(f"None of the pictures of {dataset.name} can be read, so there is nothing to publish.")
    table = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    root.write_text_atomic(folder / TABLE, table)
    card = card_text(dataset.name, dataset.settings.trigger_word, dataset.settings.repeats, rows, options)
    refuse_secrets(card, "The dataset card")
    root.write_text_atomic(folder / CARD, card)
    return len(rows)


def _copied(picture: Path, name: str, root: Root) -> str:
    """Writes a clean copy under the picture's own name, or with the ending that fits its content. Returns that path."""
    clean = clean_copy(picture, 16)
    path = Path(name)
    if clean.suffix != path.suffix.lower() and (clean.suffix, path.suffix.lower()) != (".jpg", ".jpeg"):
        path = path.with_suffix(clean.suffix)
    target, number = root.child(*path.parts), 2
    while target.exists() or (target.with_suffix(".txt").exists()):  # a.webp beside a.png: two pictures, two captions
        target = root.child(*path.with_stem(f"{path.stem}-{number}").parts)
        number += 1
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.write_bytes_atomic(target, clean.data)
    return target.relative_to(root.path).as_posix()


def card_text(
    name: str, trigger_word: str, repeats: Mapping[str, int], rows: list[dict[str, str]], options: PublishOptions
) -> str:
    """The dataset card: what the hub reads in its head, and what people read below.

    Texts of others stand in the head as JSON strings, which YAML reads as they are, and below as code.
    """
    captions = [row["text"] for row in rows if row["text"]]
    size = next((label for limit, label in _SIZES if len(rows) < limit), "n>1M")
    head = [f"license: {options.licence}"] if options.licence else []
    head += [f"pretty_name: {json.dumps(name)}", "task_categories:", "- text-to-image", "size_categories:", f"- {size}"]
    head += ["tags:", "- image-captioning", "- lora", "- safelight"]
    lines = ["---", *head, "---", "", f"# {_plain(name)}", ""]
    if options.description.strip():
        lines += [options.description.strip(), ""]
    lines += [f"{len(rows):,} pictures, {len(captions):,} with a caption.", ""]
    if trigger_word:
        lines += [f"Trigger word: {_code(trigger_word)}", ""]
    lines += _repeats_table(repeats)
    lines += [
        "## How it is laid out",
        "",
        f"Each picture has its caption beside it in a `.txt` file of the same name; `{TABLE}` has all of them in one table "
        "(`file_name`, `text`), which the `datasets` library and this site's viewer read.",
        "",
        *_example(captions),
        f"Written by Safelight {VERSION} on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}. The pictures were written anew "
        "and hold no metadata.",
        "",
    ]
    return "\n".join(lines)


def _repeats_table(repeats: Mapping[str, int]) -> Iterable[str]:
    if not repeats:
        return []
    rows = [f"| {_code(folder or '(top)')} | {count} |" for folder, count in sorted(repeats.items())]
    return ["| folder | repeats in training |", "|---|---|", *rows, ""]


def _example(captions: list[str]) -> list[str]:
    if not captions:
        return []
    usual = sorted(captions, key=lambda text: len(split_tags(text)))[len(captions) // 2]
    return ["A caption:", "", _code(usual[:300]), ""]


def _code(text: str) -> str:
    """Text of others as code of Markdown, in which nothing means anything; its own backticks become quotes."""
    return "`` " + " ".join(text.replace("`", "'").split()).replace("|", "\\|") + " ``"


def _plain(text: str) -> str:
    """A name as Markdown text: signs that mean something there are taken as they are."""
    return "".join("\\" + sign if sign in "\\`*_{}[]<>()#+-.!|~" else sign for sign in text)
