"""What a tagger is: its Protocol, its answers, the options of a tagging, and the table of all taggers.

To add one: a class with the methods of `Tagger` in a module of this package, and a row in one of the catalog*.toml files.
Nothing here imports torch, transformers or onnxruntime; a row names its class as text, which is imported to do the work.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from PIL.Image import Image
from pydantic import Field

from security.configs import read_toml
from security.errors import SafelightError
from trainer.config.schema import Section

CATALOG_FILES = "catalog*.toml"
LOOKED_UP = ("licence", "revision")
"""Fields of a row that others publish; each needs its evidence, as does every size and SHA-256 of a file."""


class Category(StrEnum):
    """What kind of thing a tag names."""

    GENERAL = "general"
    CHARACTER = "character"
    RATING = "rating"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag as the network knows it, underscores and all; `score` is its probability, 0 to 1."""

    name: str
    score: float
    category: Category = Category.GENERAL


Description = tuple[Tag, ...] | str
"""What a tagger says of a picture: tags with their scores, in any order, or a sentence."""


class CaptionMode(StrEnum):
    """What happens to pictures that have a caption already."""

    IGNORE = "ignore"
    APPEND = "append"
    REPLACE = "replace"


class RatingPlace(StrEnum):
    """Where the rating goes (general, sensitive, questionable, explicit)."""

    NO = "no"
    FIRST = "first"
    LAST = "last"


class Merge(StrEnum):
    """How the scores of several taggers become one: the highest, or the mean of all that know the tag."""

    UNION = "union"
    MEAN = "mean"


class Device(StrEnum):
    """Where the network runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class TaggingOptions(Section):
    """How pictures are tagged; the page's form, the flags of `dataset tag` and their help texts are made from this."""

    models: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)] = ("wd-vit-tagger-v3",)
    """Names of taggers or captioners; several are asked one after the other and merged into one caption."""
    merge: Merge = Merge.UNION
    """With several taggers: keep a tag that any of them is sure of (union), or judge by the mean of those that know it."""
    general_threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.35
    """How sure the network has to be of a general tag; less gives more tags, and more wrong ones."""
    character_threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.85
    """How sure it has to be of a name: of a character, and with some networks of a series or an artist."""
    characters: bool = True
    """Write names (of characters, series, artists) at all; off when a trigger word stands for the character."""
    characters_first: bool = False
    """Put names of characters before the general tags."""
    expand_characters: bool = False
    """Write `name (series)` as two tags, the name and the series."""
    rating: RatingPlace = RatingPlace.NO
    """Write the most likely rating as a tag: not at all, first or last."""
    max_tags: Annotated[int, Field(ge=0, le=500)] = 0
    """Keep only this many of the surest general tags; 0 keeps all over the threshold."""
    blacklist: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    """Tags that are never written, whole tags only, * for anything; case, underscores and escaped brackets don't count."""
    always_first: Annotated[tuple[str, ...], Field(max_length=50)] = ()
    """Tags written into every caption, in front of what the network says and behind the trigger word."""
    replace_underscores: bool = True
    """Write `long hair` for `long_hair`; faces such as ^_^ stay."""
    escape_brackets: bool = False
    r"""Write `\(` for `(`, as programs need it that read brackets as emphasis; training reads them as they are."""
    mode: CaptionMode = CaptionMode.IGNORE
    """Pictures that have a caption: leave them as they are (ignore), add what is new at the end (append), or write it anew."""
    prompt: Annotated[str, Field(max_length=4000)] = ""
    """What to ask a captioner that takes a question; empty asks its usual one."""
    max_new_tokens: Annotated[int, Field(ge=8, le=1024)] = 120
    """Longest sentence of a captioner, in tokens of its own."""
    batch_size: Annotated[int, Field(ge=1, le=64)] = 4
    """Pictures in one go; more is faster on a GPU and needs more memory."""
    device: Device = Device.AUTO
    """Where the network runs; auto takes the GPU if this installation can use it, else the CPU."""


@dataclass(frozen=True)
class TaggerFiles:
    """A tagger's folder after its files were compared with the record: path in the folder -> SHA-256."""

    folder: Path
    sha256: Mapping[str, str]


class Tagger(Protocol):
    """One network. Made, loaded, asked and closed by `run.tag_dataset`, all but `prepare` on a confined thread."""

    def load(self, files: TaggerFiles, device: str) -> str:
        """Reads the weights. `device` is "auto", "cpu" or "cuda". Returns the words for where it runs, such as "CPU".

        Raises SafelightError for files that cannot be used, or a device that is not there: never another one silently.
        """
        ...

    def prepare(self, image: Image) -> Any:
        """One picture (upright RGB, any size) as `describe` takes it. Called ahead, on threads of its own, after `load`."""
        ...

    def describe(self, prepared: Sequence[Any]) -> list[Description]:
        """Looks at a batch of prepared pictures. The answers are in their order."""
        ...

    def close(self) -> None:
        """Lets go of the memory."""
        ...


@dataclass(frozen=True)
class KnownFile:
    """What is known of one file before it is fetched: size in bytes (0: nothing), SHA-256 (empty: nothing)."""

    size: int = 0
    sha256: str = ""
    evidence: str = ""


@dataclass(frozen=True)
class TaggerRow:
    """One tagger or captioner that can be fetched.

    `loader` is "module:Class"; the class is called with the TaggingOptions and this row. `files` are the files to fetch,
    with * and ?; `known` those whose size and SHA-256 were looked up. `settings` is for the class alone.
    """

    name: str
    title: str
    kind: Literal["tags", "sentence", "mask"]
    loader: str
    source: str
    why: str
    files: tuple[str, ...]
    licence: str = ""
    revision: str = ""
    takes_prompt: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, KnownFile] = field(default_factory=dict)
    evidence: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """What fetching it brings, in bytes, small texts aside; 0 when the size of some weights was not looked up."""
        sizes = {path: file.size for path, file in self.known.items() if file.size}
        for pattern in self.files:
            if pattern.endswith((".onnx", ".safetensors")) and not any(fnmatchcase(path, pattern) for path in sizes):
                return 0
        return sum(sizes.values())

    def make(self, options: TaggingOptions) -> Tagger:
        """The tagger, not loaded yet. Imports what it is made with, which can take seconds."""
        module, _, name = self.loader.partition(":")
        tagger: Tagger = getattr(importlib.import_module(module), name)(options, self)
        return tagger


@functools.cache
def taggers() -> Mapping[str, TaggerRow]:
    """Every row by its name, in the order of the files."""
    rows = {}
    for file in sorted(Path(__file__).parent.glob(CATALOG_FILES)):
        for values in read_toml(file)["taggers"]:
            known = {path: KnownFile(**one) for path, one in values.pop("known", {}).items()}
            row = TaggerRow(**{**values, "files": tuple(values["files"]), "known": known})
            rows[row.name] = row
    return rows


def find_tagger(name: str) -> TaggerRow:
    """The row of that name or title, whatever the case. Raises SafelightError with a near name."""
    wanted = name.strip().casefold()
    for row in taggers().values():
        if wanted in (row.name.casefold(), row.title.casefold()):
            return row
    near = difflib.get_close_matches(wanted, taggers(), n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SafelightError(f"There is no tagger {name[:80]!r}.{hint} There are: {', '.join(taggers())}.")


def row_faults(row: TaggerRow) -> list[str]:
    """What is wrong with a row; none of the files may have a fault, which a test checks."""
    faults = []
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", row.source, re.ASCII):
        faults.append(f"the source {row.source!r} is not owner/name")
    if not re.fullmatch(r"trainer\.tagging\.\w+:\w+", row.loader, re.ASCII):
        faults.append(f"the loader {row.loader!r} is not a class of this package")
    if row.kind not in ("tags", "sentence") or not (row.title and row.why.endswith(".")):
        faults.append("kind, title or reason is missing")
    if row.revision and not re.fullmatch(r"[0-9a-f]{40}", row.revision):
        faults.append("the revision is not a whole commit")
    faults += [
        f"{name} and its evidence must come together"
        for name in LOOKED_UP
        if bool(getattr(row, name)) != bool(row.evidence.get(name))
    ]
    for path, file in row.known.items():
        if file.sha256 and not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
            faults.append(f"the sha256 of {path} is not 64 hexadecimal digits")
        if bool(file.size or file.sha256) != bool(file.evidence):
            faults.append(f"what is known of {path} and its evidence must come together")
    pages = [*row.evidence.values(), *(file.evidence for file in row.known.values())]
    faults += [f"the evidence {page!r} is no page" for page in pages if page and "://" not in page]
    return faults
