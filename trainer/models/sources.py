"""What a user may type to say which model is meant: an id, a page's address, an AIR, a name of the catalog."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import parse_qs, unquote

from security.errors import RefusedUrl
from security.policy import HOST_RULES, Service
from trainer.models.catalog import CatalogRow, catalog, find_row


class ParsedUrl(Protocol):
    """What is read of a checked address; `security.urls.SafeUrl` is one."""

    @property
    def service(self) -> Service: ...
    @property
    def host(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query(self) -> str: ...


@dataclass(frozen=True)
class HuggingFaceSource:
    """A repository at a revision (branch, tag or commit); `file` is a path in it, empty for the repository itself."""

    repo: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class CivitaiSource:
    """A model or one version of it; with `file_id` one of its files. One of the first two is set.

    `host` is the one of Civitai's hosts that the user named, empty for the usual one.
    """

    model_id: int | None = None
    version_id: int | None = None
    file_id: int | None = None
    host: str = ""

    def __str__(self) -> str:
        return f"civitai:{self.version_id}" if self.version_id else f"civitai model {self.model_id}"


Source = HuggingFaceSource | CivitaiSource


@dataclass(frozen=True)
class Asked:
    """What the user asked for. `row` is set when it is a model of the catalog, whose values must hold then."""

    source: Source
    row: CatalogRow | None = None


class UnknownSource(RefusedUrl):
    """A text that names no model. The message says what would."""


MAX_TYPED = 2048
EXAMPLES = (
    "Paste the address of the model's page on Hugging Face or Civitai, or type owner/name, civitai:VERSION, "
    "or a name of the catalog."
)
_ID_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_REPO = re.compile(rf"({_ID_PART})/({_ID_PART})", re.ASCII)
_REVISION = re.compile(r"[\w.-]{1,200}|refs/(?:pr|convert)/[\w.-]{1,100}", re.ASCII)
_REPO_FILE = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}(?:/[^/\\\x00-\x1f\x7f]{1,255}){0,15}")
_NUMBER = re.compile(r"\d{1,10}", re.ASCII)
_CIVITAI_ID = re.compile(r"civitai:(?:(\d{1,10})@)?(\d{1,10})", re.ASCII | re.IGNORECASE)
_AIR = re.compile(
    r"(?:urn:)?(?:air:)?(?P<family>[\w-]+):(?P<kind>[\w-]+):(?P<service>[\w-]+):"
    r"(?P<model>\d{1,10})(?:@(?P<version>\d{1,10}))?(?:\+(?P<file>\d{1,10}))?(?:\.[\w-]+)?",
    re.ASCII | re.IGNORECASE,
)
_OTHER_HUB_PAGES = ("datasets", "spaces", "docs", "papers", "collections", "blog", "posts", "models", "settings")
_OTHER_CIVITAI_PAGES = ("images", "posts", "user", "articles", "bounties", "tools", "collections", "search", "login")


def parse_source(text: str, parse_url: Callable[[str], ParsedUrl]) -> Asked:
    """Reads what a user typed. `parse_url` checks an address (`Network.parse`).

    Raises RefusedUrl, UnknownSource among them, with what to type instead.
    """
    text = text.strip()
    if not text:
        raise UnknownSource(f"Nothing is typed in. {EXAMPLES}")
    if len(text) > MAX_TYPED:
        raise UnknownSource(f"The text has {len(text)} characters; no address has over {MAX_TYPED}. {EXAMPLES}")
    if row := find_row(text):
        return Asked(_row_source(row), row)
    if "://" in text or text.startswith("//"):
        return _with_row(_from_url(parse_url(text)))
    if re.match(r"(?:www\.)?(?:huggingface\.co|hf\.co|civitai\.(?:com|red|green))/", text, re.IGNORECASE):
        return _with_row(_from_url(parse_url(f"https://{text}")))
    return _with_row(_from_id(text))


def _row_source(row: CatalogRow) -> Source:
    if found := _CIVITAI_ID.fullmatch(row.source):
        return CivitaiSource(version_id=int(found[2]))
    return HuggingFaceSource(row.source, row.revision or "main", row.file)


def _with_row(source: Source) -> Asked:
    """Also a pasted address of a catalog's file has to hold what the catalog says of it."""
    for row in catalog():
        wanted = _row_source(row)
        if isinstance(source, HuggingFaceSource) and isinstance(wanted, HuggingFaceSource):
            same_revision = source.revision in ("main", wanted.revision)
            if (source.repo.casefold(), source.file) == (wanted.repo.casefold(), wanted.file) and same_revision:
                return Asked(wanted, row)
        elif source == wanted:
            return Asked(wanted, row)
    return Asked(source)


def _from_url(url: ParsedUrl) -> Source:
    parts = [unquote(part) for part in url.path.strip("/").split("/")]
    if url.service is Service.HUGGING_FACE:
        return _from_hub_page(parts)
    rule = HOST_RULES[Service.CIVITAI]
    host = url.host.removeprefix("www.")
    return replace(_from_civitai_page(parts, url.query), host=host if host in rule.credentials - {rule.api} else "")


def _from_hub_page(parts: list[str]) -> HuggingFaceSource:
    """owner/name, and what may follow: tree/REVISION/FOLDER, blob/REVISION/FILE, resolve/REVISION/FILE."""
    if parts[0] in _OTHER_HUB_PAGES:
        raise UnknownSource(f"This is a page under {parts[0]!r} of Hugging Face, not a model's. {EXAMPLES}")
    if len(parts) < 2:
        raise UnknownSource(
            f"{parts[0] or 'This'!r} alone is an owner's page or the start page. Open the model there and paste its address."
        )
    repo = checked_repo("/".join(parts[:2]))
    if len(parts) == 2 or parts[2] in ("discussions", "commits", "commit"):
        return HuggingFaceSource(repo)
    kind, rest = parts[2], parts[3:]
    if kind not in ("tree", "blob", "resolve", "raw", "blame") or not rest:
        raise UnknownSource(f"This address ends in /{'/'.join(parts[2:])}, which is no file or folder. {EXAMPLES}")
    num_revision_parts = 3 if rest[0] == "refs" and len(rest) >= 3 else 1
    revision, path = "/".join(rest[:num_revision_parts]), "/".join(rest[num_revision_parts:])
    if kind == "tree":
        path = ""  # a folder of the repository: the files that are needed are chosen from all of it
    elif not path:
        raise UnknownSource(f"This address names no file. {EXAMPLES}")
    return HuggingFaceSource(repo, checked_revision(revision), checked_file(path))


def _from_civitai_page(parts: list[str], query: str) -> CivitaiSource:
    values = {name: found[0] for name, found in parse_qs(query).items()}
    file_id = _number(values.get("fileId"))
    if parts[:3] == ["api", "download", "models"] and len(parts) == 4:
        return CivitaiSource(version_id=_needed_number(parts[3]), file_id=file_id)
    if parts[:2] == ["api", "v1"] and len(parts) == 4 and parts[2] in ("models", "model-versions"):
        number = _needed_number(parts[3])
        return CivitaiSource(number) if parts[2] == "models" else CivitaiSource(version_id=number)
    if parts[0] == "model-versions" and len(parts) == 2:
        return CivitaiSource(version_id=_needed_number(parts[1]))
    if parts[0] == "models" and len(parts) >= 2:
        return CivitaiSource(_needed_number(parts[1]), _number(values.get("modelVersionId")), file_id)
    if parts[0] in _OTHER_CIVITAI_PAGES:
        raise UnknownSource(f"This is a page under {parts[0]!r} of Civitai, not a model's. {EXAMPLES}")
    raise UnknownSource(f"This address of Civitai names no model. {EXAMPLES}")


def _from_id(text: str) -> Source:
    """An AIR, civitai:VERSION, owner/name, owner/name@revision or owner/name/file."""
    if found := _CIVITAI_ID.fullmatch(text):
        return CivitaiSource(_number(found[1]), int(found[2]))
    if found := _AIR.fullmatch(text):
        return _from_air(found)
    if _NUMBER.fullmatch(text):
        raise UnknownSource(
            f"{text} may be a model or a version of Civitai. Type civitai:{text} for a version, or paste the model's page."
        )
    if text.startswith(("/", "~", "./", "../")) or re.match(r"[A-Za-z]:[\\/]", text) or "\\" in text:
        raise UnknownSource(
            f"{text[:200]} is a path on this machine. Bring it in under 'Bring in a model', or train with the path itself."
        )
    name, at, revision = text.partition("@")
    owner_and_name, rest = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    if "/" not in name or not _REPO.fullmatch(owner_and_name):
        raise UnknownSource(f"{text[:200]!r} names no model.{_near(text)} {EXAMPLES}")
    if at and not rest:  # owner/name@revision/file
        revision, _, rest = (revision, "", "") if revision.startswith("refs/") else revision.partition("/")
    return HuggingFaceSource(owner_and_name, checked_revision(revision or "main"), checked_file(rest))


def _from_air(found: re.Match[str]) -> CivitaiSource:
    if found["service"].lower() not in ("civitai", "civitai-r2"):
        raise UnknownSource(f"The AIR names the service {found['service']!r}. {EXAMPLES}")
    if found["kind"].lower() not in ("checkpoint", "model"):
        raise UnknownSource(
            f"The AIR names a {found['kind'].lower()}, which is not a base model. Copy the AIR of a checkpoint."
        )
    return CivitaiSource(int(found["model"]), _number(found["version"]), _number(found["file"]))


def checked_repo(repo: str) -> str:
    """The id of a repository, owner/name. Raises UnknownSource."""
    if not _REPO.fullmatch(repo) or ".." in repo or repo.endswith(".git"):
        raise UnknownSource(f"{repo[:200]!r} is not the id of a repository. It has the form owner/name.")
    return repo


def checked_revision(revision: str) -> str:
    """A branch, tag or commit. Raises UnknownSource."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise UnknownSource(f"{revision[:200]!r} is not a revision. Give a branch, a tag or a commit, such as main.")
    return revision


def checked_file(path: str) -> str:
    """A path in a repository, or "". Raises UnknownSource."""
    if path and (not _REPO_FILE.fullmatch(path) or any(part in (".", "..") for part in path.split("/"))):
        raise UnknownSource(f"{path[:200]!r} is not a file of a repository.")
    return path


def _number(text: str | None) -> int | None:
    return int(text) if text and _NUMBER.fullmatch(text) else None


def _needed_number(text: str) -> int:
    number = _number(text)
    if number is None:
        raise UnknownSource(f"{text[:60]!r} is not a number of Civitai. {EXAMPLES}")
    return number


def _near(text: str) -> str:
    names = [row.name for row in catalog()]
    near = difflib.get_close_matches(text.casefold(), names, n=1, cutoff=0.5)
    return f" Did you mean {near[0]} of the catalog?" if near else ""
