"""Asks Hugging Face what a repository holds at one commit, and chooses the files that training needs.

One request tells everything (`/api/models/ID/revision/REVISION?blobs=true&securityStatus=true`, as huggingface_hub's
`model_info` reads it). The commit in its answer is what gets fetched, whatever happens to the branch in between.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from security.errors import FailedDownload, NeedsLogin
from security.net import Network
from security.policy import CODE_SUFFIXES, Service
from security.repos import PIPELINES
from security.secrets import Secret
from trainer.families import FAMILIES
from trainer.models.plans import PENDING, SAFE, UNKNOWN, UNSAFE, Choice, Plan, PlannedFile, RefusedModel
from trainer.models.sources import HuggingFaceSource
from trainer.models.text import MAX_LISTED_BYTES, gigabytes, listed, model_name, plain_text, whole_number

CONVERTIBLE = (".ckpt", ".pt", ".pth", ".bin")
"""Checkpoints that can run code when opened; the confined converter can make safetensors of them."""
_WEIGHT = ".safetensors"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TABLES = {
    "tokenizer": (
        *("vocab.json", "merges.txt", "tokenizer.json"),
        *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    ),
    "scheduler": ("scheduler_config.json",),
}
"""Texts of the parts without weights. Parts with weights have one, config.json."""
_PART_WEIGHTS = ("diffusion_pytorch_model", "model")
_REFUSED_LEVELS = ("unsafe",)
_CLEAN_LEVELS = ("safe", "unscanned", "queued")


@dataclass(frozen=True)
class RepoFile:
    """A file of a repository. `size` in bytes; `sha256` for large (LFS) files, `git_sha1` for all."""

    path: str
    size: int | None
    sha256: str
    git_sha1: str
    scan: str


def plan_download(network: Network, token: Secret | None, source: HuggingFaceSource) -> Plan:
    """What fetching `source` will bring. Raises NeedsLogin, FailedDownload, or RefusedModel when nothing can be taken."""
    return _plan(network, token, source, lambda files, info: _chosen(source, files, _pipeline_of(info)))


def plan_files(
    network: Network,
    token: Secret | None,
    source: HuggingFaceSource,
    patterns: Sequence[str],
    known: Mapping[str, str],
) -> Plan:
    """What fetching a repository's files that match `patterns` (with * and ?) will bring, as one folder.

    `known`: SHA-256 of files that the hub may give none for. Raises as `plan_download`, and RefusedModel when a pattern
    has no file.
    """
    return _plan(network, token, source, lambda files, info: _matching(source.repo, files, patterns, known))


def _plan(
    network: Network,
    token: Secret | None,
    source: HuggingFaceSource,
    choose: Callable[[Mapping[str, RepoFile], Mapping[str, Any]], Plan],
) -> Plan:
    """Asks the hub, and fills in what does not depend on the choice of files."""
    page = str(network.url(Service.HUGGING_FACE, f"/{source.repo}"))
    info = _model_info(network, token, source)
    commit = str(info.get("sha", ""))
    if not _COMMIT.fullmatch(commit):
        raise FailedDownload(f"Hugging Face gave no commit for {source.repo}. Try again later.")
    files = {file.path: file for file in repo_files(info)}
    refuse_gated(info, token, source.repo, page)
    plan = choose(files, info)
    licence, licence_link = licence_of(info, files, page, commit)
    return Plan(
        service=Service.HUGGING_FACE,
        title=plan.title,
        name=plan.name,
        source=str(HuggingFaceSource(source.repo, commit, source.file)),
        page=page,
        revision=commit,
        layout=plan.layout,
        files=plan.files,
        repo=source.repo,
        licence=licence,
        licence_link=licence_link,
        family=plan.family,
        facts=plan.facts,
        warnings=(*_notes(info), *plan.warnings),
        confirm=plan.confirm,
        choices=plan.choices,
        needs_convert=plan.needs_convert,
        verdicts={file.remote: file.scan for file in plan.files},
    )


def _model_info(network: Network, token: Secret | None, source: HuggingFaceSource) -> Mapping[str, Any]:
    url = network.url(
        Service.HUGGING_FACE,
        f"/api/models/{source.repo}/revision/{source.revision}",
        {"blobs": "true", "securityStatus": "true"},
    )
    info = network.get_json(url, token=token)
    if not isinstance(info, Mapping):
        raise FailedDownload(f"Hugging Face gave no readable answer for {source.repo}. Try again later.")
    return info


def repo_files(info: Mapping[str, Any]) -> Iterator[RepoFile]:
    """The files that the answer lists, with what its scanners say."""
    status = info.get("securityRepoStatus")
    status = status if isinstance(status, Mapping) else {}
    issues = {
        str(issue.get("path", "")): str(issue.get("level", "")).lower()
        for issue in listed(status.get("filesWithIssues"))
        if isinstance(issue, Mapping)
    }
    done = status.get("scansDone")
    for sibling in listed(info.get("siblings")):
        if not isinstance(sibling, Mapping) or not isinstance(sibling.get("rfilename"), str):
            continue
        path, lfs = sibling["rfilename"], sibling.get("lfs")
        if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
            continue  # no path that git could hold
        lfs = lfs if isinstance(lfs, Mapping) else {}
        sha256, size = str(lfs.get("sha256", "")).lower(), lfs.get("size", sibling.get("size"))
        git_sha1 = str(sibling.get("blobId", "")).lower()
        yield RepoFile(
            path=path,
            size=whole_number(size, MAX_LISTED_BYTES),
            sha256=sha256 if _SHA256.fullmatch(sha256) else "",
            # a large file's blob is its pointer, not its content
            git_sha1=git_sha1 if _COMMIT.fullmatch(git_sha1) and not lfs else "",
            scan=_verdict(issues.get(path, ""), done),
        )


def _verdict(level: str, done: object) -> str:
    if level in _REFUSED_LEVELS:
        return UNSAFE
    if level and level not in _CLEAN_LEVELS:
        return plain_text(level, 40)  # suspicious, caution, error: shown as it is, and to be agreed to
    if done is True:
        return SAFE
    return PENDING if done is False else UNKNOWN


def refuse_gated(info: Mapping[str, Any], token: Secret | None, repo: str, page: str) -> None:
    """Raises NeedsLogin for a repository whose owner wants terms accepted, RefusedModel for a disabled one."""
    if info.get("gated") and token is None:
        raise NeedsLogin(
            f"{repo} is gated: its owner wants you to accept terms first. Open its page, accept them there, "
            "and set HF_TOKEN (a token that may read).",
            page,
        )
    if info.get("disabled"):
        raise RefusedModel(f"{repo} was disabled by Hugging Face, so it is not fetched. Choose another one.")


def _notes(info: Mapping[str, Any]) -> Iterator[str]:
    if info.get("gated"):
        yield "The model is gated: the download works only once your account has accepted its terms."
    if info.get("private"):
        yield "The repository is private; your token is sent to huggingface.co to read it."


def _pipeline_of(info: Mapping[str, Any]) -> str:
    """The pipeline class that the hub read from model_index.json, or an empty text."""
    config = info.get("config")
    diffusers = config.get("diffusers") if isinstance(config, Mapping) else None
    name = diffusers.get("_class_name") if isinstance(diffusers, Mapping) else None
    return plain_text(name, 80) if isinstance(name, str) else ""


def licence_of(info: Mapping[str, Any], files: Mapping[str, RepoFile], page: str, commit: str) -> tuple[str, str]:
    """The licence's name, and the page where it can be read: its text in the repository, else the model card."""
    card = info.get("cardData")
    card = card if isinstance(card, Mapping) else {}
    name = card.get("license_name") if card.get("license") in (None, "other") else card.get("license")
    if not isinstance(name, str):
        tags = [tag for tag in listed(info.get("tags")) if isinstance(tag, str) and tag.startswith("license:")]
        name = tags[0].removeprefix("license:") if tags else ""
    texts = [path for path in files if re.fullmatch(r"licen[cs]e(\.md|\.txt)?", path, re.IGNORECASE)]
    return plain_text(name, 80), f"{page}/blob/{commit}/{texts[0]}" if texts else page


# ---- choosing the files ------------------------------------------------------------------------------------------


def _chosen(source: HuggingFaceSource, files: Mapping[str, RepoFile], pipeline: str) -> Plan:
    """The part of the plan that depends on the files: what is asked for, a whole folder, or a question."""
    if source.file:
        return _one_file(source.repo, _asked_file(source, files))
    singles = [file for file in files.values() if _is_single_file(file.path, _WEIGHT, files)]
    if "model_index.json" in files:
        if pipeline and pipeline not in PIPELINES:
            raise RefusedModel(_untrainable(source.repo, pipeline))
        if folder := _folder_files(files):
            return _folder(source.repo, files, folder, singles)
    if len(singles) == 1:
        return _one_file(source.repo, singles[0])
    if singles:
        return _question(source.repo, singles)
    risky = [
        file for file in files.values() if any(_is_single_file(file.path, suffix, files) for suffix in CONVERTIBLE)
    ]
    if len(risky) == 1:
        return _one_file(source.repo, risky[0])
    if risky:
        return _question(source.repo, risky)
    raise RefusedModel(_nothing_usable(source.repo, files))


def _asked_file(source: HuggingFaceSource, files: Mapping[str, RepoFile]) -> RepoFile:
    if source.file in files:
        return files[source.file]
    by_name = [file for file in files.values() if PurePosixPath(file.path).name == source.file]
    if len(by_name) == 1:
        return by_name[0]
    near = difflib.get_close_matches(source.file, files, n=1)
    hint = f" Did you mean {plain_text(near[0], 160)}?" if near else ""
    weights = [plain_text(path, 80) for path in files if path.endswith(_WEIGHT)][:10]
    raise RefusedModel(
        f"{source.repo} has no file {plain_text(source.file, 160)}.{hint} It has: {', '.join(weights) or 'no .safetensors file'}."
    )


def _one_file(repo: str, file: RepoFile) -> Plan:
    """The plan of a single checkpoint."""
    suffix = PurePosixPath(file.path).suffix.lower()
    if suffix != _WEIGHT and suffix not in CONVERTIBLE:
        shown = plain_text(file.path, 160)
        kind = "a program" if suffix in CODE_SUFFIXES else f"a {plain_text(suffix, 20) or 'nameless'} file"
        raise RefusedModel(
            f"Refused: {shown} of {repo} is {kind}, not model weights. Choose a .safetensors file of the repository."
        )
    if file.scan == UNSAFE:
        raise RefusedModel(_unsafe(repo, [file.path]))
    name = PurePosixPath(file.path).name
    stem = model_name(PurePosixPath(name).stem, "model")
    needs_convert = suffix != _WEIGHT
    facts = () if needs_convert else ("Safetensors: nothing in it can run",)
    planned = PlannedFile(
        path=f"{stem}{suffix}",
        remote=file.path,
        size=file.size,
        sha256=file.sha256,
        git_sha1=file.git_sha1,
        scan=file.scan,
    )
    return _partial(
        title=f"{repo.partition('/')[2]}: {plain_text(name, 120)}",
        name=stem,
        files=(planned,),
        facts=facts,
        warnings=tuple(_scan_warnings([file])),
        confirm=tuple(_confirmations([file])),
        needs_convert=needs_convert,
    )


def _question(repo: str, files: list[RepoFile]) -> Plan:
    """Several checkpoints: which one? The largest first."""
    ordered = sorted(files, key=lambda file: file.size or 0, reverse=True)
    choices = tuple(
        Choice(file.path, f"{plain_text(file.path, 160)} ({_size_text(file)}{_risk(file.path)})", file.size)
        for file in ordered
    )
    return _partial(
        title=repo.partition("/")[2],
        name=model_name(repo.partition("/")[2], "model"),
        facts=(f"{repo} holds {len(files)} single-file models: choose one",),
        choices=choices,
    )


def _folder(repo: str, files: Mapping[str, RepoFile], chosen: dict[str, RepoFile], singles: list[RepoFile]) -> Plan:
    """The plan of a diffusers folder."""
    unsafe = [file.path for file in chosen.values() if file.scan == UNSAFE]
    if unsafe:
        raise RefusedModel(_unsafe(repo, unsafe))
    half = any(".fp16." in file.path for file in chosen.values())
    left = sum(file.path not in {one.path for one in chosen.values()} for file in files.values())
    facts = [
        f"Diffusers folder: {len(chosen)} of {len(files)} files are needed",
        f"{left} files are left out: other formats, pictures, notes",
    ]
    if half:
        facts.append(
            "Weights at half precision, which all parts have: training keeps the base at that precision anyway"
        )
    if singles:
        others = ", ".join(f"{plain_text(file.path, 80)} ({_size_text(file)})" for file in singles[:4])
        facts.append(f"Also here as a single file: {others}. Add its name to the address to take that instead")
    planned = tuple(
        PlannedFile(path, file.path, file.size, file.sha256, file.git_sha1, file.scan) for path, file in chosen.items()
    )
    family = "sdxl" if any(path.startswith("text_encoder_2/") for path in chosen) else "sd15"
    return _partial(
        title=repo.partition("/")[2],
        name=model_name(repo.partition("/")[2], "model"),
        layout="folder",
        files=planned,
        family=family,
        facts=tuple(facts),
        warnings=tuple(_scan_warnings(list(chosen.values()))),
        confirm=tuple(_confirmations(list(chosen.values()))),
    )


def _matching(repo: str, files: Mapping[str, RepoFile], patterns: Sequence[str], known: Mapping[str, str]) -> Plan:
    """The plan of the files that match a pattern."""
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in files):
            raise RefusedModel(f"{repo} has no file {pattern} (any more), which is needed. It is not fetched.")
    chosen = [
        replace(file, sha256=file.sha256 or known.get(path, ""))
        for path, file in files.items()
        if any(fnmatchcase(path, pattern) for pattern in patterns)
    ]
    if unsafe := [file.path for file in chosen if file.scan == UNSAFE]:
        raise RefusedModel(_unsafe(repo, unsafe))
    planned = (PlannedFile(file.path, file.path, file.size, file.sha256, file.git_sha1, file.scan) for file in chosen)
    return _partial(
        title=repo.partition("/")[2],
        name=model_name(repo.partition("/")[2], "model"),
        layout="folder",
        files=tuple(planned),
        warnings=tuple(_scan_warnings(chosen)),
        confirm=tuple(_confirmations(chosen)),
    )


def _partial(**fields: Any) -> Plan:
    """A plan whose source is filled in by `plan_download`."""
    empty: dict[str, Any] = {"source": "", "page": "", "revision": "", "layout": "file", "files": ()}
    return Plan(service=Service.HUGGING_FACE, **{**empty, **fields})


def _folder_files(files: Mapping[str, RepoFile]) -> dict[str, RepoFile]:
    """The files of a diffusers folder, by the path they get here; empty when a part has no safetensors weights.

    Half precision is taken when every part has it in one file: the base is frozen while a LoRA trains, and kept at 16 bits.
    """
    pipeline = "StableDiffusionXLPipeline" if any(path.startswith("unet/") for path in files) else ""
    if not any(path.startswith("text_encoder_2/") for path in files):
        pipeline = "StableDiffusionPipeline" if pipeline else ""
    if not pipeline:
        return {}
    chosen = {"model_index.json": files["model_index.json"]}
    weighted = [part for part in PIPELINES[pipeline] if part.removesuffix("_2") not in _TABLES]
    half = {part: _part_weights(part, files, ".fp16") for part in weighted}
    full = {part: _part_weights(part, files, "") for part in weighted}
    weights = half if all(len(found) == 1 for found in half.values()) else full
    if not all(weights.values()):
        return {}
    for part in PIPELINES[pipeline]:
        tables = _TABLES.get(part.removesuffix("_2"), ("config.json",))
        texts = {f"{part}/{name}": files[f"{part}/{name}"] for name in tables if f"{part}/{name}" in files}
        if not texts:
            return {}
        chosen |= texts
        chosen |= {file.path.replace(".fp16", ""): file for file in weights.get(part, ())}
    return chosen


def _part_weights(part: str, files: Mapping[str, RepoFile], variant: str) -> list[RepoFile]:
    """The weights of one part: one file, or the shards with their index."""
    for stem in _PART_WEIGHTS:
        whole = f"{part}/{stem}{variant}{_WEIGHT}"
        if whole in files:
            return [files[whole]]
        index = f"{part}/{stem}{_WEIGHT}.index.json"
        if not variant and index in files:
            shards = [file for path, file in files.items() if re.fullmatch(rf"{part}/{stem}-\d+-of-\d+{_WEIGHT}", path)]
            return [files[index], *shards]
    return []


def _is_single_file(path: str, suffix: str, files: Mapping[str, RepoFile]) -> bool:
    """Whether this may be a whole checkpoint: not a part of a diffusers folder or of a training state."""
    if not path.lower().endswith(suffix):
        return False
    folder = path.rpartition("/")[0]
    parts = {part for needed in PIPELINES.values() for part in needed} | {"safety_checker", "image_encoder"}
    if folder.rpartition("/")[2].removesuffix("_1_0") in parts or f"{folder}/config.json" in files:
        return False
    return not re.fullmatch(r"(pytorch_model|training_args|optimizer|scheduler|rng_state).*", path.rpartition("/")[2])


def _scan_warnings(files: list[RepoFile]) -> Iterator[str]:
    verdicts = {file.scan for file in files}
    if PENDING in verdicts:
        yield "Hugging Face has not finished scanning these files for viruses and dangerous code"
    elif UNKNOWN in verdicts:
        yield "Hugging Face gave no scan result for these files"


def _confirmations(files: list[RepoFile]) -> Iterator[str]:
    for file in files:
        if file.scan not in (SAFE, PENDING, UNKNOWN, UNSAFE):
            yield f"Hugging Face's scanners call {plain_text(file.path, 160)} {file.scan!r}"
        if not file.sha256 and not file.git_sha1:
            shown = plain_text(file.path, 160)
            yield f"The hub gives no checksum for {shown}, so nobody can tell whether it arrives as it was uploaded"


def _unsafe(repo: str, paths: list[str]) -> str:
    shown = ", ".join(plain_text(path, 80) for path in paths[:5])
    return (
        f"Refused: Hugging Face's scanners found {shown} of {repo} unsafe. It may hold harmful code. "
        "Look for the model at its original author."
    )


def _untrainable(repo: str, pipeline: str) -> str:
    labels = " and ".join(family.label for family in FAMILIES.values())
    return f"Refused: {repo} is a {pipeline}. This version trains {labels} base models: use one of these."


def _nothing_usable(repo: str, files: Mapping[str, RepoFile]) -> str:
    unusable = [
        path for path in files if not path.startswith(".") and not path.lower().endswith((".md", ".txt", ".json"))
    ]
    unusable.sort(
        key=lambda path: not path.lower().endswith(CONVERTIBLE)
    )  # what a person took for the model stands first
    shown = ", ".join(plain_text(path, 80) for path in unusable[:8]) or "nothing"
    more = f" and {len(unusable) - 8} more" if len(unusable) > 8 else ""
    return (
        f"Refused: {repo} holds no base model that can be taken: no .safetensors checkpoint and no complete diffusers "
        f"folder with .safetensors weights. It has {shown}{more}. Look for a .safetensors version of the model."
    )


def _size_text(file: RepoFile) -> str:
    return "size unknown" if file.size is None else gigabytes(file.size)


def _risk(path: str) -> str:
    return "" if path.endswith(_WEIGHT) else ", can run code: only through the converter"
