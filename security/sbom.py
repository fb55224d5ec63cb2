"""Lists what is installed as a bill of materials (SBOM) in CycloneDX 1.6 JSON, for scanners and for the record.

Every component has its package URL, version and licence as its own metadata says, and the SHA-256 sums that the lock allows
for its file: which of these files it was, Python does not keep. Nothing is sent anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from security.locks import Pin, pins_of_this_machine, read_lock

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

TEST_LOCK = "requirements-test.txt"
MAX_LICENCE_CHARACTERS = 120
"""Some packages put the whole text of a licence into the field for its name."""


def make_sbom(repository: Path, version: str) -> str:
    """The bill of materials of the running Python as indented JSON. `version` is Safelight's own."""
    from cyclonedx.output.json import JsonV1Dot6

    return JsonV1Dot6(_bom(repository, version)).output_as_string(indent=1)


def _bom(repository: Path, version: str) -> Bom:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType

    locked = {pin.name: pin for pin in _pins(repository)}
    installed = {
        canonicalize_name(one.metadata["Name"]): one for one in metadata.distributions() if one.metadata["Name"]
    }
    components: dict[str, Component] = {
        name: _component(one, locked.get(name)) for name, one in sorted(installed.items())
    }
    bom = Bom(components=components.values())
    bom.metadata.component = Component(
        name="safelight", version=version, type=ComponentType.APPLICATION, bom_ref="safelight"
    )
    roots = [components[pin.name] for pin in _roots(repository) if pin.name in components]
    bom.register_dependency(bom.metadata.component, roots)
    for name, one in installed.items():
        needs = {canonicalize_name(found[0]) for text in one.requires or [] if (found := re.match(r"[\w.-]+", text))}
        bom.register_dependency(components[name], [components[need] for need in sorted(needs) if need in components])
    return bom


def _pins(repository: Path) -> Iterable[Pin]:
    yield from (pin for pin in read_lock(repository / TEST_LOCK) if pin.holds_here)
    yield from pins_of_this_machine(repository)


def _roots(repository: Path) -> list[Pin]:
    """What Safelight itself asks for: the first part of requirements.txt."""
    names = (repository / "requirements.txt").read_text(encoding="utf-8").split("# What those bring")[0]
    wanted = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", names, re.MULTILINE)}
    return [pin for pin in pins_of_this_machine(repository) if pin.name in wanted]


def _component(package: metadata.Distribution, pin: Pin | None) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name, version = str(canonicalize_name(package.metadata["Name"])), package.version
    licence = _licence(package)
    sums = pin.hashes if pin is not None and pin.version == version.partition("+")[0] else ()
    # A component's own hashes are those of one file. The lock allows one file per system, so with several of them they
    # belong to the place that the file came from.
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=one) for one in sums]
    url = XsUri(f"https://pypi.org/project/{name}/{version.partition('+')[0]}/")
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        purl=PackageURL("pypi", None, name, version),
        bom_ref=f"{name}=={version}",
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
        hashes=hashes if len(hashes) == 1 else [],
        external_references=[ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=url, hashes=hashes)],
    )


def _licence(package: metadata.Distribution) -> str:
    """The licence as the package's metadata names it, newest field first; "" where it names none."""
    fields = package.metadata
    trove = [text.rpartition(" :: ")[2] for text in fields.get_all("Classifier") or [] if text.startswith("License ::")]
    # get_all: an entry that is not there is None here, or a KeyError where the backport of this module was imported
    named: list[str] = [
        *(fields.get_all("License-Expression") or []),
        *(fields.get_all("License") or []),
        " AND ".join(trove),
    ]
    for text in named:
        if text.strip() not in ("", "UNKNOWN"):
            return text.strip().splitlines()[0][:MAX_LICENCE_CHARACTERS]
    return ""
