"""Asks Civitai what a model version holds, and chooses its file. Names, titles and notes are other people's text.

`/api/v1/model-versions/ID` lists files with size, hashes and scan results, `/api/v1/models/ID` the permissions
(developer.civitai.com/site/reference). The API's own `downloadUrl` is not used: for some files it leads nowhere, and it may
come without a scheme. The address is built from the ids instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from security.errors import FailedDownload, NeedsLogin
from security.net import Network
from security.policy import Service
from security.secrets import Secret
from security.urls import SafeUrl
from trainer.families import FAMILIES
from trainer.models.plans import PENDING, SAFE, UNKNOWN, UNSAFE, Plan, PlannedFile, RefusedModel
from trainer.models.sources import CivitaiSource
from trainer.models.text import MAX_LISTED_BYTES, gigabytes, listed, model_name, plain_text

BASES: dict[str, str] = {
    **dict.fromkeys(("SD 1.4", "SD 1.5", "SD 1.5 LCM", "SD 1.5 Hyper"), "sd15"),
    **dict.fromkeys(
        ("SDXL 0.9", "SDXL 1.0", "SDXL 1.0 LCM", "SDXL Turbo", "SDXL Lightning", "SDXL Hyper", "SDXL Distilled"), "sdxl"
    ),
    **dict.fromkeys(("Pony", "Illustrious", "NoobAI"), "sdxl"),
}
"""Civitai's names of base models that this version trains, and their family."""
OTHER_BASES = (
    *("SD 2", "SD 3", "Flux", "Stable Cascade", "SVD", "PixArt", "Hunyuan", "Lumina", "Kolors", "AuraFlow", "Chroma"),
    *(
        "Wan",
        "Qwen",
        "ZImage",
        "Pony V7",
        "HiDream",
        "LTX",
        "Mochi",
        "CogVideo",
        "Anima",
        "OpenAI",
        "Imagen",
        "Playground",
    ),
)
"""Beginnings of names of base models that it does not train."""
_CLEAN, _BAD, _WAITING = ("Success",), ("Danger", "Error"), ("Pending",)
_MODEL_FILES = ("Model", "Pruned Model")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class _File:
    """One file of a version. `name` is what the uploader called it, `size` in bytes, None when it is not exact."""

    id: int
    name: str
    size: int | None
    size_text: str
    sha256: str
    scan: str
    primary: bool

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


def plan_download(network: Network, token: Secret | None, source: CivitaiSource, wanted_file: str = "") -> Plan:
    """What fetching a version will bring; `wanted_file` is a file's name or number.

    Raises NeedsLogin, FailedDownload, or RefusedModel with the reason and the way out.
    """
    version_id = source.version_id or _newest_version(network, token, source)
    version = _ask(network, token, source, "model-versions", version_id)
    model_id = version.get("modelId")
    if source.model_id and model_id != source.model_id:
        raise RefusedModel(
            f"Version {version_id} belongs to model {model_id}, not {source.model_id}. Copy the address again."
        )
    page = _page(network, source, model_id, version_id)
    model = _mapping(version.get("model"))
    title = (
        f"{plain_text(model.get('name'), 120)} {plain_text(version.get('name'), 60)}".strip() or f"version {version_id}"
    )
    kind = plain_text(model.get("type"), 40)
    if kind and kind != "Checkpoint":
        raise RefusedModel(
            f"Refused: {title} is of the type {kind}, not a checkpoint. Choose a base model to train on."
        )
    _refuse_unavailable(version, title, page)
    base = plain_text(version.get("baseModel"), 60)
    family = _family(base, title)
    file, others = _choose(title, list(_files(version)), source.file_id, wanted_file)
    stem = model_name(PurePosixPath(file.name).stem, f"civitai-{version_id}")
    needs_convert = file.suffix != ".safetensors"
    planned = PlannedFile(f"{stem}{file.suffix}", str(file.id), file.size, file.sha256, "", file.scan)
    facts = [f"Base model: {base or 'not given'}"] + ([] if needs_convert else ["Safetensors: nothing in it can run"])
    if file.size is None:
        facts.append(f"Size: about {file.size_text}")
    if others:
        facts.append(f"Other files of this version: {', '.join(others)}")
    return Plan(
        service=Service.CIVITAI,
        title=title,
        name=stem,
        source=f"civitai:{version_id}",
        host=source.host,
        page=page,
        revision=f"version {version_id}",
        layout="file",
        files=(planned,),
        version_id=version_id,
        licence=_permissions(network, token, source, model_id),
        licence_link=page,
        family=family,
        facts=tuple(facts),
        warnings=tuple(_warnings(version, file)),
        confirm=tuple(_confirmations(base, family, file)),
        needs_convert=needs_convert,
        verdicts={file.name: file.scan},
    )


def _ask(network: Network, token: Secret | None, source: CivitaiSource, kind: str, number: int) -> Mapping[str, Any]:
    answer = network.get_json(_url(network, source, f"/api/v1/{kind}/{number}"), token=token)
    if not isinstance(answer, Mapping) or answer.get("error"):
        raise FailedDownload(f"Civitai has no {kind[:-1].replace('-', ' ')} {number}. Check the number in the address.")
    return answer


def _url(network: Network, source: CivitaiSource, path: str, query: Mapping[str, str] | None = None) -> SafeUrl:
    """An address on the host that the user named: civitai.com shows only a part of what the others have."""
    return network.url(Service.CIVITAI, path, query, host=source.host or None)


def _newest_version(network: Network, token: Secret | None, source: CivitaiSource) -> int:
    versions = _ask(network, token, source, "models", source.model_id or 0).get("modelVersions")
    for version in listed(versions):  # the newest stands first
        number = _mapping(version).get("id")
        if isinstance(number, int) and _mapping(version).get("status") in (None, "Published"):
            return number
    raise FailedDownload(f"Model {source.model_id} of Civitai has no published version. Choose another model.")


def _page(network: Network, source: CivitaiSource, model_id: object, version_id: int) -> str:
    if isinstance(model_id, int):
        return str(_url(network, source, f"/models/{model_id}", {"modelVersionId": str(version_id)}))
    return str(_url(network, source, f"/model-versions/{version_id}"))


def _refuse_unavailable(version: Mapping[str, Any], title: str, page: str) -> None:
    if version.get("usageControl") not in (None, "Download"):
        raise RefusedModel(f"Refused: the author of {title} lets it be used on Civitai only, not downloaded.")
    if version.get("availability") == "EarlyAccess":
        raise NeedsLogin(f"{title} is in early access: it has to be bought on Civitai first. Its page: {page}", page)


def _family(base: str, title: str) -> str:
    if base in BASES:
        return BASES[base]
    if base.startswith(OTHER_BASES):
        labels = " and ".join(family.label for family in FAMILIES.values())
        raise RefusedModel(
            f"Refused: {title} is made for {base}. This version trains {labels} base models: use one of these."
        )
    return ""


# ---- files -------------------------------------------------------------------------------------------------------


def _files(version: Mapping[str, Any]) -> Iterator[_File]:
    for entry in listed(version.get("files")):
        file = _mapping(entry)
        if file.get("type") not in (None, *_MODEL_FILES) or not isinstance(file.get("id"), int):
            continue
        kilobytes = file.get("sizeKB")
        num_bytes = 0.0
        if isinstance(kilobytes, int | float) and 0 < kilobytes <= MAX_LISTED_BYTES / 1024:
            num_bytes = float(kilobytes) * 1024
        is_exact = num_bytes > 0 and abs(num_bytes - round(num_bytes)) < 1e-3
        sha256 = str(_mapping(file.get("hashes")).get("SHA256", "")).lower()
        yield _File(
            id=file["id"],
            name=plain_text(unquote(str(file.get("name", ""))), 200),
            size=round(num_bytes) if is_exact else None,
            size_text=gigabytes(num_bytes) if num_bytes else "unknown size",
            sha256=sha256 if len(sha256) == 64 and set(sha256) <= set("0123456789abcdef") else "",
            scan=_verdict(file),
            primary=file.get("primary") is True,
        )


def _verdict(file: Mapping[str, Any]) -> str:
    """The worse of the two scans."""
    results = [file.get("virusScanResult"), file.get("pickleScanResult")]
    if any(result in _BAD for result in results):
        return UNSAFE
    if any(result in _WAITING for result in results):
        return PENDING
    return SAFE if all(result in _CLEAN for result in results) else UNKNOWN


def _choose(title: str, files: list[_File], file_id: int | None, wanted: str) -> tuple[_File, list[str]]:
    """The asked file, else the primary safetensors one, else any; with the names of the others."""
    if not files:
        raise RefusedModel(f"Refused: {title} has no model file on Civitai. Choose another version.")
    if file_id or wanted:
        chosen = next((file for file in files if file_id == file.id or wanted in (file.name, str(file.id))), None)
        if chosen is None:
            names = ", ".join(f"{file.name} ({file.id})" for file in files)
            raise RefusedModel(f"{title} has no file {wanted or file_id}. It has: {names}.")
    else:
        chosen = max(files, key=lambda file: (file.suffix == ".safetensors", file.primary, file.suffix in _PICKLES))
    if chosen.suffix not in (".safetensors", *_PICKLES):
        raise RefusedModel(
            f"Refused: {chosen.name} of {title} is a {chosen.suffix or 'nameless'} file. Choose a version with .safetensors."
        )
    if chosen.scan == UNSAFE:
        raise RefusedModel(
            f"Refused: Civitai's virus or pickle scan of {chosen.name} failed (Danger or Error). It may hold harmful code. "
            "Choose another version or model."
        )
    others = [f"{file.name} ({file.size_text})" for file in files if file.id != chosen.id]
    return chosen, others[:6]


def _warnings(version: Mapping[str, Any], file: _File) -> Iterator[str]:
    if file.scan == PENDING:
        yield "Civitai has not scanned this file yet"
    elif file.scan == UNKNOWN:
        yield "Civitai gave no scan result for this file"
    if version.get("status") not in (None, "Published"):
        yield f"The version is {plain_text(version.get('status'), 40)}, not published"


def _confirmations(base: str, family: str, file: _File) -> Iterator[str]:
    if not file.sha256:
        yield f"Civitai gives no SHA-256 for {file.name}, so nobody can tell whether it arrives as it was uploaded"
    if not family:
        yield f"Civitai calls its base {base or 'nothing'!r}: whether it can be trained is only known after the download"


def _permissions(network: Network, token: Secret | None, source: CivitaiSource, model_id: object) -> str:
    """What the author allows, in words; Civitai has these switches instead of a licence's name."""
    if not isinstance(model_id, int):
        return ""
    try:
        model = _ask(network, token, source, "models", model_id)
    except FailedDownload:
        return "permissions unknown: read them on its page"
    commercial = model.get("allowCommercialUse")
    uses = [commercial] if isinstance(commercial, str) else listed(commercial)
    parts = [
        "credit not needed" if model.get("allowNoCredit") is True else "credit the author",
        "commercial use: " + (", ".join(plain_text(use, 20) for use in uses if use != "None") or "no"),
        "derivatives allowed" if model.get("allowDerivatives") is True else "no derivatives",
        "any licence for derivatives"
        if model.get("allowDifferentLicense") is True
        else "same permissions for derivatives",
    ]
    return "; ".join(parts)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
