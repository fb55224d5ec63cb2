"""Files over HTTP: only a run's own, only a dataset's pictures, never a way out."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.ui.runs_on_disk import run_folder
from trainer.dataset.thumbnails import THUMBNAIL_SIDE
from trainer.demo import INK_DIR
from ui.downloads import routes
from ui.services import Services


@pytest.fixture
def client(services: Services) -> TestClient:
    run_folder(services.workspace, "old")
    return TestClient(Starlette(routes=routes(services)), raise_server_exceptions=True)


def test_samples_come_as_pictures_and_as_small_ones(client: TestClient) -> None:
    path = "/safelight/runs/old/samples/step-00000020-00.png"
    whole = client.get(path)
    assert whole.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(whole.content)).size == (600, 400)
    small = client.get(path + "?v=1&thumb=1")
    assert small.headers["content-type"] == "image/webp"
    assert max(Image.open(io.BytesIO(small.content)).size) == THUMBNAIL_SIDE


def test_loras_settings_and_logs_come_as_downloads(client: TestClient) -> None:
    for path, name in (
        ("old.safetensors", "old.safetensors"),
        ("config.toml", "config.toml"),
        ("log.txt", "old-log.txt"),
    ):
        answer = client.get(f"/safelight/runs/old/{path}")
        assert answer.status_code == 200, path
        assert answer.headers["content-disposition"].startswith("attachment")
        assert name in answer.headers["content-disposition"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "step 10/20" in client.get("/safelight/runs/old/log.txt").text


def test_pictures_of_a_dataset_are_found_by_its_name(client: TestClient, services: Services) -> None:
    name = sorted(path.name for path in INK_DIR.glob("*.png"))[0]
    assert client.get(f"/safelight/datasets/ink/{name}").headers["content-type"] == "image/png"
    assert client.get(f"/safelight/datasets/ink/{name}?thumb=1").status_code == 200
    assert client.get("/safelight/datasets/ink/" + name.replace(".png", ".txt")).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "runs/old/events.jsonl",
        "datasets/ink/no-such-picture.png",
        "runs/old/run.lock",
        "runs/old/.hidden.png",
        "runs/old/../secret.toml",
        "runs/old/%2e%2e/secret.toml",
        "runs/old/..%2fsecret.toml",
        "runs/old/samples/..%2fsecret.toml",
        "runs/old/unlisted.toml",
        "runs/old/samples/unlisted.png",
        "runs/old//etc/passwd",
        "runs/old/samples",
        "runs/old/samples/none.png",
        "runs/old/samples/none.png?thumb=1",
        "runs/%2e%2e/datasets/x.png",
        "runs/none/config.toml",
        "runs/old/link.png",
        "datasets/none/x.png",
        "datasets/%2e%2e/runs/old/samples/step-00000020-00.png",
        "datasets/%2fetc/x.png",
        "datasets/linked/x.png",
        "datasets/own/.hidden.png",
        "datasets/own/.cache/x.png",
    ],
)
def test_nothing_else_is_served(client: TestClient, services: Services, path: str) -> None:
    old = services.workspace.runs_dir / "old"
    for extra in (
        old.parent / "secret.toml",
        old / "unlisted.toml",
        old / ".hidden.png",
        old / "samples" / "unlisted.png",
    ):
        extra.write_bytes(b"secret")
    outside = services.workspace.path.parent / "outside"
    outside.mkdir()
    Image.new("RGB", (40, 40)).save(outside / "x.png")
    (old / "link.png").symlink_to(outside / "x.png")
    own = services.workspace.datasets_dir / "own"
    (own / ".cache").mkdir(parents=True)
    for hidden in (own / ".hidden.png", own / ".cache" / "x.png"):
        Image.new("RGB", (40, 40)).save(hidden)
    (services.workspace.datasets_dir / "linked").symlink_to(outside)
    answer = client.get("/safelight/" + path)
    assert answer.status_code == 404
    assert str(services.workspace.path) not in answer.text
