"""`fetch` as a user types it: a process of its own, a real mirror on loopback, kill -9 in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hubs.civitai import CivitaiPlayer
from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.models import pickle_checkpoint, sdxl_checkpoint, sha256
from tests.hubs.server import Hubs, Reply, loopback_hubs

REPOSITORY = Path(__file__).resolve().parents[1]
REPO = "someone/tiny-xl"
DATA = sdxl_checkpoint(filler=400_000)
TOKEN = "hf_" + "s" * 34


@pytest.fixture(scope="module")
def plain_mirror() -> Iterator[Hubs]:
    with loopback_hubs(tls=False) as running:
        yield running


@pytest.fixture
def mirror(plain_mirror: Hubs) -> Hubs:
    plain_mirror.clear()
    return plain_mirror


@pytest.fixture
def space(tmp_path: Path) -> Path:
    return tmp_path / "space"


def publish(mirror: Hubs, files: dict[str, bytes], **replies: object) -> HuggingFacePlayer:
    player = HuggingFacePlayer(mirror, REPO, files, host="*", storage=None)
    for path in files:
        player.replies[path] = dict(replies)
    return player.publish()


def command(mirror: Hubs, space: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "launch.py", "--no-venv", "fetch", *arguments),
        *("--workspace", str(space), "--hf-endpoint", mirror.origin),
    ]


def environment(**variables: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "CIVITAI_", "SAFELIGHT_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **variables}


def run(argv: list[str], home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    return subprocess.run(
        argv, cwd=REPOSITORY, env=environment(HOME=str(home), **variables), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def wait_for_part(space: Path, num_bytes: int) -> None:
    deadline = time.monotonic() + 40
    while True:
        sizes = [path.stat().st_size for path in space.glob("downloads/*/parts/*.part")]
        if any(size >= num_bytes for size in sizes):
            return
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.02)


def test_a_model_comes_into_the_library(mirror: Hubs, space: Path, tmp_path: Path) -> None:
    publish(mirror, {"tiny.safetensors": DATA})
    done = run(command(mirror, space, REPO, "--name", "mine"), tmp_path / "home", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert f"tiny-xl: tiny.safetensors: {len(DATA) / 1000:.0f} kB" in done.stdout
    assert COMMIT in done.stdout and "Licence: openrail++" in done.stdout and "mine is in the library" in done.stdout
    assert (space / "models" / "mine.safetensors").read_bytes() == DATA
    assert mirror.seen and all(seen.token is None for seen in mirror.seen), "a mirror gets no token"
    assert TOKEN not in done.stdout + done.stderr
    listed = run(
        [sys.executable, "launch.py", "--no-venv", "models", "--workspace", str(space), "--json"], tmp_path / "home"
    )
    (model,) = [one for one in json.loads(listed.stdout) if one["name"] == "mine"]
    assert model["integrity"] == "verified" and model["source"] == f"Hugging Face: {REPO}@{COMMIT}"


def test_tokens_go_to_a_mirror_only_when_it_is_said(mirror: Hubs, space: Path, tmp_path: Path) -> None:
    publish(mirror, {"tiny.safetensors": DATA})
    argv = command(mirror, space, REPO, "--send-tokens-to-mirror", "--json")
    done = run(argv, tmp_path / "home", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert {seen.token for seen in mirror.seen} == {f"Bearer {TOKEN}"}
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == ["plan", "done"]
    assert events[0]["files"][0]["sha256"] == sha256(DATA)


def test_killed_it_goes_on_where_it_was(mirror: Hubs, space: Path, tmp_path: Path) -> None:
    player = publish(mirror, {"tiny.safetensors": DATA}, piece=16_384, pause=0.1)
    argv = command(mirror, space, REPO)
    home = tmp_path / "home"
    home.mkdir()
    process = subprocess.Popen(
        argv, cwd=REPOSITORY, env=environment(HOME=str(home)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_part(space, 60_000)
    finally:
        process.kill()
        process.wait(10)
    assert list((space / "models").iterdir()) == []
    (part,) = space.glob("downloads/*/parts/*.part")
    have = part.stat().st_size
    player.replies.clear()
    player.publish()
    before = len(mirror.seen)
    done = run(argv, home)
    assert done.returncode == 0, done.stderr
    (asked,) = [seen for seen in mirror.seen[before:] if "/resolve/" in seen.path]
    assert asked.headers["range"] == f"bytes={have}-"
    assert (space / "models" / "tiny.safetensors").read_bytes() == DATA
    assert len(list(space.glob("downloads/*"))) == 1


def test_ctrl_c_keeps_what_came(mirror: Hubs, space: Path, tmp_path: Path) -> None:
    publish(mirror, {"tiny.safetensors": DATA}, piece=16_384, pause=0.1)
    home = tmp_path / "home"
    home.mkdir()
    process = subprocess.Popen(
        command(mirror, space, REPO), cwd=REPOSITORY, env=environment(HOME=str(home)),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_part(space, 30_000)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and "The same command goes on from there" in errors
    (part,) = space.glob("downloads/*/parts/*.part")
    assert part.stat().st_size >= 30_000


def test_refusals_say_why_and_change_nothing(mirror: Hubs, space: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    publish(mirror, {"old.ckpt": pickle_checkpoint()})
    refused = run(command(mirror, space, REPO), home)
    assert refused.returncode == 2 and "can run code" in refused.stderr
    publish(mirror, {"a.safetensors": DATA, "b.safetensors": DATA})
    choice = run(command(mirror, space, REPO), home)
    assert choice.returncode == 2 and "--file 'a.safetensors'" in choice.stdout and "--file FILE" in choice.stderr
    wrong = run(command(mirror, space, REPO, "--file", "a.safetensors", "--sha256", "0" * 64), home)
    assert wrong.returncode == 2 and "you expect 000" in wrong.stderr
    publish(mirror, {"fake.safetensors": b"<html>log in</html>"})
    fake = run(command(mirror, space, REPO), home)
    assert fake.returncode == 1 and "web page" in fake.stderr
    nowhere = run(command(mirror, space, "https://evil.example/x.safetensors"), home)
    assert nowhere.returncode == 2 and "evil.example" in nowhere.stderr
    assert list((space / "models").iterdir()) == []


def test_what_is_not_verified_needs_a_yes(mirror: Hubs, space: Path, tmp_path: Path) -> None:
    player = publish(mirror, {"tiny.safetensors": DATA})
    player.changes["tiny.safetensors"] = {"lfs": None, "blobId": None}
    asked = run(command(mirror, space, REPO), tmp_path / "home")
    assert asked.returncode == 2 and "not verified: The hub gives no checksum" in asked.stdout
    agreed = run(command(mirror, space, REPO, "--yes"), tmp_path / "home")
    assert agreed.returncode == 0, agreed.stderr


def test_a_variable_names_no_mirror(mirror: Hubs, space: Path, tmp_path: Path) -> None:
    publish(mirror, {"tiny.safetensors": DATA})
    argv = [sys.executable, "launch.py", "--no-venv", "fetch", REPO, "--workspace", str(space)]
    named = f"{mirror.origin}?token=SECRET"
    refused = run(argv, tmp_path / "home", HF_ENDPOINT=named)
    assert refused.returncode == 2 and f"--hf-endpoint {mirror.origin}" in refused.stderr
    assert "SECRET" not in refused.stderr and mirror.seen == []
    flag = run(command(mirror, space, REPO), tmp_path / "home", HF_ENDPOINT="https://elsewhere.example")
    assert flag.returncode == 0, "the flag decides"


@pytest.mark.parametrize("address", ["http://mirror.example", "ftp://127.0.0.1", "https://huggingface.co", "127.0.0.1"])
def test_a_mirror_that_is_none_is_refused(mirror: Hubs, space: Path, tmp_path: Path, address: str) -> None:
    argv = [
        sys.executable,
        "launch.py",
        "--no-venv",
        "--hf-endpoint",
        address,
        "fetch",
        REPO,
        "--workspace",
        str(space),
    ]
    refused = run(argv, tmp_path / "home")
    assert refused.returncode == 2 and address in refused.stderr


def test_a_mirror_of_civitai(mirror: Hubs, space: Path, tmp_path: Path) -> None:
    player = CivitaiPlayer(mirror, host="*")
    player.add("tiny.safetensors", DATA)
    player.publish()
    mirror.on("*", "/api/download/models/290640", lambda _: player_body(player))
    argv = [
        *(sys.executable, "launch.py", "--no-venv", "fetch", "civitai:290640", "--workspace", str(space)),
        *("--civitai-endpoint", mirror.origin),
    ]
    done = run(argv, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert (space / "models" / "tiny.safetensors").read_bytes() == DATA


def player_body(player: CivitaiPlayer) -> Reply:
    """A mirror sends the file itself."""
    return Reply(body=next(iter(player.bodies.values())), etag='"1"')


def test_the_catalog_is_listed(space: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "launch.py", "--no-venv", "models", "--catalog", "--workspace", str(space)]
    assert "sdxl-base-1.0" in run(argv, tmp_path / "home").stdout
    rows = json.loads(run([*argv, "--json"], tmp_path / "home").stdout)
    assert {row["family"] for row in rows} == {"sd15", "sdxl"}
