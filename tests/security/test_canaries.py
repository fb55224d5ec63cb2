"""Canary tokens through every way in which programs lose them, then a search through every byte that was left behind.

And the counter-check: without the redactor the same tokens are found on each path, and each layer alone stops its own.
"""

from __future__ import annotations

import base64
import json
import random
import string
import subprocess
import sys
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from security.output import LAYERS
from tests.security.canary_child import DESCRIPTORS, ENDINGS, HARMLESS, HOOKS, PAGE, PATHS, TEXT, WRITERS
from trainer.workspace import REPOSITORY_DIR

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
pytestmark = on_linux
ALL = [*LAYERS, "log file", WRITERS, PAGE]
_LETTERS = string.ascii_letters + string.digits


def _random(number: int, letters: str, length: int) -> str:
    return "".join(random.Random(number).choices(letters, k=length))


def shapes(number: int) -> dict[str, str]:
    """Six tokens of six shapes, other ones for every number."""
    return {
        "Hugging Face": "hf_" + _random(number, _LETTERS, 34),
        "Hugging Face JWT": "hf_jwt_" + _random(number + 1, _LETTERS + "-_", 60) + "x",
        "Civitai": _random(number + 2, "0123456789abcdef", 32),
        "GitHub": "github_pat_" + _random(number + 3, _LETTERS, 40),
        "signs": "q" + _random(number + 4, "+/=%&\"'\\<>~{}" + _LETTERS, 30) + "Z",
        "page password": "-".join(
            _random(number + 5 + part, "abcdefghijkmnpqrstuvwxyz23456789", 5) for part in range(5)
        ),
    }


def canaries(paths: list[str], num_shapes: int) -> dict[str, dict[str, str]]:
    """Tokens for each path, no two alike, so that a token that is found tells where it was lost."""
    names = [*PATHS, *HARMLESS, *ENDINGS]
    made = {path: shapes(1000 * (names.index(path) + 1)) for path in paths}
    return {path: dict(list(one.items())[-num_shapes:]) for path, one in made.items()}


def traces(token: str) -> list[bytes]:
    """What would give a token away: itself but for its ends, or the same in another writing."""
    core = token[1:-1]
    texts = {core, urllib.parse.quote(core, safe=""), json.dumps(core)[1:-1], repr(core)[1:-1], core.encode().hex()}
    found = [text.encode() for text in texts]
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + token.encode())
        found.append(encoded[4:-4])
    return found


@dataclass
class CanaryReport:
    """What was driven, where was looked, what was found. `lost`: path -> sinks in which one of its tokens was found."""

    layers: list[str]
    paths: int
    tokens: int
    sinks: dict[str, int] = field(default_factory=dict)
    lost: dict[str, set[str]] = field(default_factory=dict)
    exit_code: int = 0

    def __str__(self) -> str:
        size = sum(self.sinks.values())
        return (
            f"layers {', '.join(self.layers) or 'none'}: {self.paths} paths, {self.tokens} tokens, {len(self.sinks)} sinks "
            f"with {size} bytes, {sum(map(len, self.lost.values()))} hits on {len(self.lost)} paths"
        )


@dataclass(frozen=True)
class Scenario:
    """What to drive with which layers in place."""

    layers: list[str]
    paths: list[str]
    num_shapes: int = 2


def canary_reports(folder: Path, scenarios: dict[str, Scenario]) -> dict[str, CanaryReport]:
    """Drives canaries through the paths of each scenario, in a process of its own, and searches all that it left."""
    orders = []
    for name, scenario in scenarios.items():
        place = folder / name.replace(" ", "-")
        (place / "tmp").mkdir(parents=True)
        tokens = canaries(scenario.paths, scenario.num_shapes)
        orders.append({"folder": str(place), "layers": scenario.layers, "tokens": tokens})
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.canary_child"],
        input=json.dumps(orders).encode(),
        cwd=REPOSITORY_DIR,
        capture_output=True,
        timeout=300,
        check=True,
    )
    codes = json.loads(done.stdout)
    assert done.stderr == b""
    named = zip(scenarios, orders, codes, strict=True)
    return {name: _searched(Path(order["folder"]), order, code) for name, order, code in named}


def _searched(folder: Path, order: dict[str, Any], exit_code: int) -> CanaryReport:
    tokens = order["tokens"]
    sinks = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report = CanaryReport(order["layers"], len(tokens), sum(map(len, tokens.values())), exit_code=exit_code)
    report.sinks = {name: len(data) for name, data in sinks.items()}
    for path, by_shape in tokens.items():
        for token in by_shape.values():
            found = {name for name, data in sinks.items() if any(trace in data for trace in traces(token))}
            if found:
                report.lost.setdefault(path, set()).update(found)
    return report


EVERYTHING = [*PATHS, *HARMLESS]
OWN = {layer: [path for path, (_, layers) in PATHS.items() if layer in layers] for layer in [*LAYERS, WRITERS, PAGE]}
ONLY = {layer: [path for path, (_, layers) in PATHS.items() if layers == (layer,)] for layer in OWN}
NEEDED = [layer for layer, paths in ONLY.items() if paths]
"""Layers without which a path has no other one."""
SCENARIOS = {
    "all": Scenario(ALL, EVERYTHING, 6),
    "none": Scenario([], EVERYTHING),
    **{f"only {layer}": Scenario([layer], paths) for layer, paths in OWN.items()},
    **{f"all but {layer}": Scenario([name for name in ALL if name != layer], ONLY[layer]) for layer in NEEDED},
    **{f"ends by {ending}": Scenario(ALL, ["print", ending]) for ending in ENDINGS},
    **{f"ends bare by {ending}": Scenario([], [ending]) for ending in ENDINGS},
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CanaryReport]:
    return canary_reports(tmp_path_factory.mktemp("canaries"), SCENARIOS)


def test_no_token_is_found_anywhere(reports: dict[str, CanaryReport], capsys: pytest.CaptureFixture[str]) -> None:
    report = reports["all"]
    with capsys.disabled():
        print(f"\n{report}\n{reports['none']}")
    assert report.exit_code == 0
    assert report.lost == {}
    assert report.paths >= 50 and report.tokens == 6 * report.paths
    assert {"stdout", "stderr", "workspace/logs/safelight.log", "library.log", "processes.bin"} <= set(report.sinks)
    assert {"workspace/runs/canary-events/events.jsonl", "workspace/cache/answers"} <= set(report.sinks)
    assert all(
        report.sinks[name] > 1000 for name in ("stdout", "stderr", "workspace/logs/safelight.log", "library.log")
    )


def test_without_the_redactor_every_path_loses_its_tokens(reports: dict[str, CanaryReport]) -> None:
    assert reports["none"].exit_code == 0
    assert set(reports["none"].lost) == set(PATHS)


@pytest.mark.parametrize("layer", OWN)
def test_each_layer_alone_masks_its_own_paths(reports: dict[str, CanaryReport], layer: str) -> None:
    report = reports[f"only {layer}"]
    assert report.exit_code == 0 and report.paths > 0
    # A refusal and an answer are looked for in files; a traceback on the way there is for other layers to mask.
    elsewhere = {"stdout", "stderr"} if layer in (WRITERS, PAGE) else set()
    # What goes to standard error may go to a log as well, which descriptors and streams do not see.
    elsewhere |= {"library.log"} if layer in (DESCRIPTORS, TEXT) else set()
    assert {path for path, sinks in report.lost.items() if sinks - elsewhere} == set()


@pytest.mark.parametrize("layer", NEEDED)
def test_a_missing_layer_is_noticed(reports: dict[str, CanaryReport], layer: str) -> None:
    """Layers overlap, so this takes the paths that only the missing one covers: their tokens are found."""
    assert set(reports[f"all but {layer}"].lost) == set(ONLY[layer])


def test_layers_that_no_path_needs_are_known() -> None:
    """Python's own streams and hooks end in descriptors, which mask what passed them; these two are a second fence."""
    assert set(OWN) - set(NEEDED) == {TEXT, HOOKS}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_that_ends_badly_loses_nothing(reports: dict[str, CanaryReport], ending: str) -> None:
    kept, lost = reports[f"ends by {ending}"], reports[f"ends bare by {ending}"]
    assert kept.lost == {} and kept.sinks["stdout"] > 0
    assert set(lost.lost) == {ending}
    assert lost.exit_code == kept.exit_code != 0
