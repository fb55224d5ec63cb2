"""Datasets by address: what a person may type, and what lies there before anything of it is fetched.

Hugging Face tells all files of a dataset in one answer (`/api/datasets/ID/revision/REVISION?blobs=true`, as huggingface_hub's
`dataset_info` reads it); the commit in it is what gets fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from security.errors import FailedDownload, RefusedUrl
from security.net import Network
from security.policy import MIB, Service
from security.secrets import Secret
from security.urls import SafeUrl
from trainer.dataset.incoming import CAPTION_SUFFIXES, PICTURE_SUFFIXES, TABLE_NAMES
from trainer.models.huggingface import RepoFile, licence_of, refuse_gated, repo_files
from trainer.models.sources import HuggingFaceSource, checked_file, checked_repo, checked_revision
from trainer.models.text import gigabytes, listed, model_name, plain_text

EXAMPLES = (
    "Type hf:owner/name or paste the address of a dataset's page on Hugging Face, or the address of a .zip there or on "
    "Civitai."
)
MAX_LIST_BYTES = 16 * MIB
"""Largest list of a repository's files: about 60,000."""
_DATASET_PAGE = re.compile(r"(?:https://)?(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/(.+)", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PAGE_SUFFIXES = frozenset({".md", "no ending"})
"""The dataset's card and git's own files: nobody misses them."""
_FEW_PICTURES = 5
"""So many pictures may only decorate the page of a dataset whose data is elsewhere."""


@dataclass(frozen=True)
class HubPlan:
    """What lies at an address. `source` names it exactly, as text that can be typed. `kind`: parquet, pictures, archives.

    `url`: of a single archive that is in no dataset's list; then `files` is empty.
    """

    source: str
    title: str
    name: str
    kind: str
    repo: str = ""
    commit: str = ""
    files: tuple[RepoFile, ...] = ()
    url: SafeUrl | None = None
    facts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes to fetch, as far as they are known."""
        return sum(file.size or 0 for file in self.files)


def plan_address(network: Network, token: Secret | None, text: str) -> HubPlan:
    """What lies at an address. Asks Hugging Face for a dataset. `token`: for Hugging Face.

    Raises RefusedUrl for what is none, NeedsLogin, FailedDownload.
    """
    text = text.strip()
    source = _dataset_source(text)
    if source is not None:
        return _dataset_plan(network, token, source)
    if "://" not in text:
        raise RefusedUrl(f"{text[:120]!r} is no address of a dataset. {EXAMPLES}")
    url = network.parse(re.sub(r"^(https://(?:www\.)?(?:huggingface|hf)\.co/[^/]+/[^/]+)/blob/", r"\1/resolve/", text))
    name = PurePosixPath(unquote(url.path)).name
    is_download = url.service is Service.CIVITAI and url.path.startswith("/api/download/")
    if not (name.lower().endswith(".zip") or is_download):
        raise RefusedUrl(f"{url.shown[:160]} does not end in .zip. {EXAMPLES}")
    title = plain_text(name if not is_download else f"download {name} of Civitai", 120)
    facts = (f"An archive on {url.host}; its size is known once it comes",)
    return HubPlan(str(url), title, model_name(PurePosixPath(name).stem, "dataset"), "archives", url=url, facts=facts)


def _dataset_source(text: str) -> HuggingFaceSource | None:
    """The dataset that a text names; `file` is a file or folder in it. None for other addresses."""
    if found := _DATASET_PAGE.fullmatch(text):
        parts = [unquote(part) for part in re.split("[?#]", found[1])[0].strip("/").split("/")]
        repo, rest = checked_repo("/".join(parts[:2])), parts[2:]
        if not rest or rest[0] in ("viewer", "discussions", "commits", "embed"):
            return HuggingFaceSource(repo)
        if rest[0] not in ("tree", "blob", "resolve", "raw") or len(rest) < 2:
            raise RefusedUrl(f"This page of {repo} is not one of its files. {EXAMPLES}")
        return HuggingFaceSource(repo, checked_revision(rest[1]), checked_file("/".join(rest[2:])))
    found = re.fullmatch(r"hf:(?:datasets/)?([^@]+?)(?:@([^/]+)(/.+)?)?", text, re.IGNORECASE)
    if found is None:
        found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([^/]+)(/.+)?)?", text, re.ASCII)
    if found is None:
        return None
    parts = found[1].strip("/").split("/")
    path = "/".join(parts[2:]) or (found[3] or "").strip("/")
    return HuggingFaceSource(
        checked_repo("/".join(parts[:2])), checked_revision(found[2] or "main"), checked_file(path)
    )


def _dataset_plan(network: Network, token: Secret | None, source: HuggingFaceSource) -> HubPlan:
    url = network.url(
        Service.HUGGING_FACE, f"/api/datasets/{source.repo}/revision/{source.revision}", {"blobs": "true"}
    )
    info = network.get_json(url, token=token, max_bytes=MAX_LIST_BYTES)
    if not isinstance(info, Mapping) or not _COMMIT.fullmatch(str(info.get("sha", ""))):
        raise FailedDownload(f"Hugging Face gave no readable answer for {source.repo}. Try again later.")
    page = str(network.url(Service.HUGGING_FACE, f"/datasets/{source.repo}"))
    refuse_gated(info, token, source.repo, page)
    commit = str(info["sha"])
    files = [file for file in repo_files(info) if _is_below(file.path, source.file)]
    kind, chosen, warnings = _chosen(files, source)
    facts = [f"{_words(kind, chosen)}, {gigabytes(sum(file.size or 0 for file in chosen))}"]
    if features := _features(info):
        facts.append(f"Columns: {features}")
    licence, _ = licence_of(info, {file.path: file for file in files}, page, commit)
    facts.append(f"Licence: {licence}" if licence else "Its owner names no licence")
    facts.append(f"Pinned to the commit {commit[:10]}")
    return HubPlan(
        source=f"hf:{source.repo}@{commit}" + (f"/{source.file}" if source.file else ""),
        title=f"{source.repo}" + (f": {plain_text(source.file, 120)}" if source.file else ""),
        name=model_name(source.repo.partition("/")[2], "dataset"),
        kind=kind,
        repo=source.repo,
        commit=commit,
        files=tuple(chosen),
        facts=tuple(facts),
        warnings=tuple(warnings),
    )


def _is_below(path: str, asked: str) -> bool:
    return not asked or path == asked or path.startswith(f"{asked.rstrip('/')}/")


def _chosen(files: list[RepoFile], source: HuggingFaceSource) -> tuple[str, list[RepoFile], list[str]]:
    """What is fetched of a dataset: its Parquet shards for training, else pictures and captions, else archives."""
    by_kind = {
        "parquet": _ending(files, (".parquet",)),
        "pictures": _ending(files, PICTURE_SUFFIXES),
        "archives": _ending(files, (".zip",)),
    }
    few = len(by_kind["pictures"]) < _FEW_PICTURES
    order = ("parquet", "archives", "pictures") if few else ("parquet", "pictures", "archives")
    kind = next((kind for kind in order if by_kind[kind]), "")
    if not kind:
        shown = ", ".join(plain_text(file.path, 60) for file in files[:8]) or "nothing"
        raise FailedDownload(
            f"{source.repo} has no Parquet files, pictures or zip archives of its own: it has {shown}. Other kinds, such as "
            "loading scripts and tar archives, are not opened."
        )
    if kind == "parquet":
        chosen, warnings = _training_shards(by_kind["parquet"])
        return kind, chosen, warnings
    chosen = by_kind[kind]
    if kind == "pictures":
        chosen = [*chosen, *_ending(files, CAPTION_SUFFIXES), *_tables(files)]
    left = sorted(_suffixes(files) - _suffixes(chosen) - _PAGE_SUFFIXES)
    return kind, chosen, [f"Other files stay there: {', '.join(left[:8])}"] if left else []


def _training_shards(shards: list[RepoFile]) -> tuple[list[RepoFile], list[str]]:
    """The shards of the part "train" of one configuration, which is a folder of the repository."""
    warnings = []
    training = [file for file in shards if re.search(r"(^|[/._-])train([/._-]|$)", file.path)]
    if training and len(training) < len(shards):
        warnings.append("It has several parts; the one for training is taken. Name a file to take another")
    chosen = training or shards
    folders = sorted({file.path.rpartition("/")[0] for file in chosen})
    if len(folders) > 1:
        first = next((folder for folder in folders if folder in ("data", "default")), folders[0])
        chosen = [file for file in chosen if file.path.rpartition("/")[0] == first]
        shown = ", ".join(plain_text(folder, 40) or "the top" for folder in folders[:8])
        warnings.append(
            f"It has several configurations ({shown}); {plain_text(first, 40) or 'the top'} is taken. Add a folder to the "
            "address to take another"
        )
    return sorted(chosen, key=lambda file: file.path), warnings


def _ending(files: Iterable[RepoFile], suffixes: tuple[str, ...]) -> list[RepoFile]:
    return sorted((file for file in files if file.path.lower().endswith(suffixes)), key=lambda file: file.path)


def _tables(files: Iterable[RepoFile]) -> list[RepoFile]:
    return [file for file in files if PurePosixPath(file.path).name.lower() in TABLE_NAMES]


def _suffixes(files: Iterable[RepoFile]) -> set[str]:
    return {PurePosixPath(file.path).suffix.lower() or "no ending" for file in files}


def _words(kind: str, files: list[RepoFile]) -> str:
    count = len(_ending(files, PICTURE_SUFFIXES)) if kind == "pictures" else len(files)
    word = {"parquet": "Parquet file", "pictures": "picture", "archives": "zip archive"}[kind]
    return f"{count} {word}{'' if count == 1 else 's'}"


def _features(info: Mapping[str, Any]) -> str:
    """The columns that the dataset's card names, such as "image, text"."""
    card = info.get("cardData")
    described = card.get("dataset_info") if isinstance(card, Mapping) else None
    described = listed(described)[0] if listed(described) else described
    features = listed(described.get("features")) if isinstance(described, Mapping) else []
    names = [plain_text(one.get("name"), 40) for one in features[:12] if isinstance(one, Mapping)]
    return ", ".join(name for name in names if name)
