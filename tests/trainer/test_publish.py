"""Datasets are published on a real hub server on loopback by the real child process: what arrives, and what never leaves."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from security.errors import Cancelled, FailedDownload, NeedsLogin, RefusedConfig, RefusedName, SafelightError
from security.net import Network
from security.policy import Service
from security.secrets import Secret
from security.upload import upload_endpoint
from security.upload_child import Refused, check_request
from tests.hubs.upload_hub import TOKEN, UploadHub, upload_hub
from trainer.dataset.publish import LICENCES, PublishOptions, card_text, publish_dataset
from trainer.dataset.settings import DatasetSettings
from trainer.dataset.studio import Dataset, Studio
from trainer.tasks import TaskControl
from trainer.workspace import Workspace

PLACE = b"geheimer-ort-52.5N"


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with upload_hub() as running:
        yield running


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Workspace.open(tmp_path / "workspace"))


@pytest.fixture
def cats(studio: Studio) -> Dataset:
    """A photo with a place in it, a transparent picture in a repeat folder, one that is broken."""
    dataset = studio.create("cats")
    exif = Image.Exif()
    exif[0x010E] = PLACE.decode()
    photo = Image.radial_gradient("L").convert("RGB")
    photo.save(dataset.path / "a b.jpg", exif=exif)
    (dataset.path / "10_mira").mkdir()
    Image.new("RGBA", (32, 24), (200, 30, 60, 100)).save(dataset.path / "10_mira" / "b.webp", lossless=True)
    (dataset.path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    dataset.set_captions(
        "test", {"a b.jpg": "mira_v1, a cat | on `straw`", "10_mira/b.webp": "mira_v1, <b>ünïcode</b>"}
    )
    dataset.set_settings("test", DatasetSettings(trigger_word="mira_v1", repeats={"10_mira": 3}))
    return dataset


def publish(
    studio: Studio, dataset: Dataset, hub: UploadHub, control: TaskControl | None = None, **options: Any
) -> str:
    wanted = PublishOptions(**{"repo": "me/cats", **options})
    return publish_dataset(studio, dataset, wanted, Secret(TOKEN, "test"), hub.endpoint, control or TaskControl())


def head_of(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    values = yaml.safe_load(head)
    assert isinstance(values, dict)
    return values


def test_what_arrives_is_the_dataset_without_its_metadata(studio: Studio, cats: Dataset, hub: UploadHub) -> None:
    control = TaskControl()
    report = publish(studio, cats, hub, control, licence="cc-by-4.0", description="My cats.\n\n---\nlicense: mit")
    assert report.startswith(f"2 pictures are on {hub.endpoint}/datasets/me/cats now (private, commit ")
    repo = hub.repos["me/cats"]
    assert repo.private and len(repo.commits) == 2
    assert set(repo.files) == {
        *("README.md", "metadata.jsonl", "a b.jpg", "a b.txt", "10_mira/b.png", "10_mira/b.txt"),
    }
    assert PLACE in (cats.path / "a b.jpg").read_bytes()
    assert not any(PLACE in content for content in repo.files.values())
    with Image.open(io.BytesIO(repo.files["a b.jpg"])) as sent, Image.open(cats.path / "a b.jpg") as own:
        assert sent.tobytes() == own.tobytes()
    with Image.open(io.BytesIO(repo.files["10_mira/b.png"])) as sent:
        assert sent.getpixel((0, 0)) == (200, 30, 60, 100)
    rows = [json.loads(line) for line in repo.files["metadata.jsonl"].decode().splitlines()]
    assert rows == [
        {"file_name": "10_mira/b.png", "text": "mira_v1, <b>ünïcode</b>"},
        {"file_name": "a b.jpg", "text": "mira_v1, a cat | on `straw`"},
    ]
    assert repo.files["a b.txt"].decode() == "mira_v1, a cat | on `straw`\n"
    head = head_of(repo.files["README.md"].decode())
    assert head["license"] == "cc-by-4.0" and head["pretty_name"] == "cats" and head["size_categories"] == ["n<1K"]
    assert "Trigger word: `` mira_v1 ``" in repo.files["README.md"].decode()
    assert [name for name, _ in control._now()[4]] == ["broken.png"]
    assert not list((studio.workspace.cache_dir / "studio").iterdir()), "the copies stayed behind"


def test_the_token_goes_to_the_hub_alone(studio: Studio, cats: Dataset, hub: UploadHub) -> None:
    publish(studio, cats, hub)
    authorized = {path for _, path, authorization in hub.seen if TOKEN in authorization}
    stored = [authorization for method, path, authorization in hub.seen if path.startswith("/blobs/")]
    assert "/api/datasets/me/cats/commit/main" in authorized
    assert stored and not any(stored)


def test_requests_to_other_hosts_lose_the_token() -> None:
    from huggingface_hub.utils import _http

    request_class = vars(_http)["httpx2"].Request
    for url, keeps in (
        ("https://huggingface.co/api", True),
        ("https://huggingface.co:8443/api", False),
        ("https://huggingface.co.evil.example/api", False),
        ("https://storage.example/x", False),
    ):
        request = request_class("PUT", url, headers={"Authorization": f"Bearer {TOKEN}"})
        check_request(request, "https", "huggingface.co")
        assert ("authorization" in request.headers) == keeps, url
    with pytest.raises(Refused, match="without encryption"):
        check_request(request_class("PUT", "http://huggingface.co/x"), "https", "huggingface.co")


def test_a_new_version_replaces_what_was_there_only_when_asked(studio: Studio, cats: Dataset, hub: UploadHub) -> None:
    publish(studio, cats, hub)
    with pytest.raises(FailedDownload, match="There is a dataset me/cats already"):
        publish(studio, cats, hub)
    with pytest.raises(FailedDownload, match="is private and you asked for public"):
        publish(studio, cats, hub, replace=True, private=False)
    assert len(hub.repos["me/cats"].commits) == 2
    cats.remove_pictures("test", ["a b.jpg"])
    publish(studio, cats, hub, replace=True)
    assert set(hub.repos["me/cats"].files) == {"README.md", "metadata.jsonl", "10_mira/b.png", "10_mira/b.txt"}
    publish(studio, cats, hub, repo="me/open", private=False)
    assert not hub.repos["me/open"].private


FAULTS: list[tuple[Callable[[UploadHub], Any], type[SafelightError], str]] = [
    (lambda hub: setattr(hub, "token", "hf_another"), NeedsLogin, "does not accept this token"),
    (lambda hub: hub.faults.update({"repos/create": 403}), NeedsLogin, "may not write to me/cats.*Fault 403"),
    (lambda hub: setattr(hub, "meddles", True), FailedDownload, "somebody changed me/cats meanwhile"),
    (lambda hub: hub.faults.update({"/commit/": 400}), FailedDownload, "answered 400 and said 'Fault 400"),
    (lambda hub: setattr(hub, "elsewhere", "http://127.0.0.1:9"), FailedDownload, "without encryption"),
]


@pytest.mark.parametrize(("fault", "kind", "words"), FAULTS, ids=["401", "403", "412", "400", "http"])
def test_faults_are_told_and_publish_nothing(
    studio: Studio, cats: Dataset, hub: UploadHub, fault: Callable[[UploadHub], Any], kind: type, words: str
) -> None:
    fault(hub)
    with pytest.raises(kind, match=f"Nothing was published.*{words}"):
        publish(studio, cats, hub)
    assert not any(repo.files for repo in hub.repos.values())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_cancel_ends_the_child_and_its_token_is_in_no_argument(studio: Studio, cats: Dataset, hub: UploadHub) -> None:
    hub.slow = threading.Event()
    control = TaskControl()
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            publish(studio, cats, hub, control)
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 30
    while not any(path.startswith("/blobs/") for _, path, _ in hub.seen) and time.monotonic() < deadline:
        time.sleep(0.02)
    (child,) = [one for one in Path("/proc").glob("[0-9]*") if b"upload_child.py" in _read(one / "cmdline")]
    for name in ("cmdline", "environ"):
        assert _read(child / name) and TOKEN.encode() not in _read(child / name)
    control.cancel()
    thread.join(10)
    assert not thread.is_alive() and "nothing was published" in str(outcome[0])
    assert b"upload_child" not in _read(child / "cmdline")
    assert hub.repos["me/cats"].files == {}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_token_in_a_caption_is_not_published(studio: Studio, cats: Dataset, hub: UploadHub) -> None:
    cats.set_captions("test", {"a b.jpg": f"cat {TOKEN}"})
    with pytest.raises(RefusedConfig, match=r"caption of a b\.jpg"):
        publish(studio, cats, hub)
    assert not hub.seen


def test_names_that_no_repository_has_are_refused_at_once() -> None:
    for repo in ("cats", "me/", "me/ca ts", "../me", "me/..", "me/x.git", "a/b/c", "me/cats\n", "-me/cats", "me/c--d"):
        with pytest.raises(RefusedName, match="Give OWNER/NAME"):
            PublishOptions(repo=repo)
    with pytest.raises(SafelightError, match="not a licence of the list"):
        PublishOptions(repo="me/cats", licence="mine")


def test_two_pictures_that_differ_by_their_ending_stay_two(studio: Studio, hub: UploadHub) -> None:
    dataset = studio.create("twins")
    Image.new("RGB", (16, 16), "red").save(dataset.path / "a.png")
    Image.new("RGB", (16, 16), "blue").save(dataset.path / "a.webp")
    dataset.set_captions("test", {"a.png": "one caption for both"})
    publish(studio, dataset, hub, repo="me/twins")
    files = hub.repos["me/twins"].files
    assert {name for name in files if name.endswith(".png")} == {"a.png", "a-2.png"}
    assert files["a.png"] != files["a-2.png"]


def test_a_card_takes_hostile_names_for_text() -> None:
    options = PublishOptions(repo="me/cats", licence="mit")
    rows = [{"file_name": "a.png", "text": "x`](http://evil) <script> |\n# y"}]
    card = card_text('x"\nlicense: evil\n# [a](b)', "`] <img src=x>", {"a|b`": 2}, rows, options)
    head = head_of(card)
    assert head["pretty_name"] == 'x"\nlicense: evil\n# [a](b)' and head["license"] == "mit"
    body = card.split("---\n", 2)[2]
    assert "<img src=x>" not in body.replace("`` '] <img src=x> ``", "")
    assert "\n# y" not in body and r"a\|b'" in body
    assert all(
        head_of(card_text("n", "", {}, rows, PublishOptions("a/b", licence=one)))["license"] == one for one in LICENCES
    )


def test_a_mirror_gets_uploads_only_with_tokens(hub: UploadHub) -> None:
    mirrors = {Service.HUGGING_FACE: hub.endpoint}
    assert upload_endpoint(Network()) == "https://huggingface.co"
    assert upload_endpoint(Network(mirrors=mirrors, send_tokens_to_mirrors=True)) == hub.endpoint
    with pytest.raises(RefusedConfig, match="send-tokens-to-mirror"):
        upload_endpoint(Network(mirrors=mirrors))
