"""Datasets by address, from a server that plays the hubs: what is planned, fetched, refused and kept for another attempt."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from security.errors import Cancelled, FailedDownload, NeedsLogin, RefusedFile, RefusedUrl, SafelightError
from security.policy import Service
from security.sandbox import probe
from security.secrets import Secret
from tests.hubs.huggingface import COMMIT, HuggingFacePlayer
from tests.hubs.server import Hubs, Reply
from tests.security.zip_files import HOSTILE, Member, zip_bytes
from trainer.dataset.addresses import plan_address
from trainer.dataset.fetched import AddressOptions, import_address
from trainer.dataset.studio import Studio
from trainer.tasks import TaskControl
from trainer.workspace import Workspace

REPO = "someone/cats"
needs_sandbox = pytest.mark.skipif(not probe().active, reason=probe().detail)


def png(color: str, size: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, 10), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Workspace.open(tmp_path / "space"))


@pytest.fixture
def control() -> TaskControl:
    return TaskControl()


Bring = Callable[..., str]


@pytest.fixture
def bring(hubs: Hubs, studio: Studio, control: TaskControl) -> Iterator[Bring]:
    """Imports into the dataset `cats`; nothing may be left in the cache after a success."""

    def work(text: str = f"hf:{REPO}", **options: Any) -> str:
        return import_address(studio, hubs.network(), None, "cats", text, AddressOptions(**options), control)

    yield work
    assert not list((studio.workspace.cache_dir / "studio").iterdir())


def reasons(control: TaskControl) -> dict[str, str]:
    return dict(control._now()[4])


def kept(studio: Studio) -> list[Path]:
    folder = studio.workspace.cache_dir / "imports"
    return list(folder.iterdir()) if folder.is_dir() else []


def dataset_of(hubs: Hubs, **files: bytes) -> HuggingFacePlayer:
    """Files by name; "__" stands for "/" and "_dot_" for a dot."""
    named = {name.replace("__", "/").replace("_dot_", "."): data for name, data in files.items()}
    return HuggingFacePlayer(hubs, REPO, named, kind="datasets").publish()


def pictures_with_metadata() -> dict[str, bytes]:
    rows = [{"file_name": f"p{number}.png", "text": f"cat {number}"} for number in range(6)]
    table = "\n".join(json.dumps(row) for row in rows).encode()
    return {
        **{f"train__p{number}_dot_png": png("red", 20 + number) for number in range(6)},
        "train__metadata_dot_jsonl": table, "README_dot_md": b"# cats", "train__p0_dot_txt": b"a text of its own",
    }  # fmt: skip


def parquet_bytes(rows: list[dict[str, Any]], group: int = 2) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("text", pa.string()), ("style", pa.string())])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, row_group_size=group)
    return buffer.getvalue()


def rows_of(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": png("blue", 20 + number), "path": f"p{number}.png"},
            "text": f"cat {number}",
            "style": "ink",
        }
        for number in range(first, first + count)
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"hf:{REPO}", f"HF:datasets/{REPO}", REPO, f"https://huggingface.co/datasets/{REPO}", f"hf.co/datasets/{REPO}/",
        f"https://huggingface.co/datasets/{REPO}/tree/main", f"hf:{REPO}@{COMMIT}", f"huggingface.co/datasets/{REPO}/viewer",
        f"https://huggingface.co/datasets/{REPO}/tree/main/train?x=1", f"hf:{REPO}/train", f"hf:{REPO}@main/train",
    ],
)  # fmt: skip
def test_a_dataset_is_found_by_every_usual_address(hubs: Hubs, text: str) -> None:
    dataset_of(hubs, **pictures_with_metadata())
    plan = plan_address(hubs.network(), None, text)
    path = "/train" if "train" in text else ""
    assert plan.source == f"hf:{REPO}@{COMMIT}{path}"
    assert (plan.kind, plan.name, plan.commit) == ("pictures", "cats", COMMIT)
    assert plan.facts[0].startswith("6 pictures, ") and f"Pinned to the commit {COMMIT[:10]}" in plan.facts
    assert "Licence: openrail++" in plan.facts
    assert plan_address(hubs.network(), None, plan.source) == plan, "what it names itself is found again"


@pytest.mark.parametrize(
    "text",
    [
        "", "cats", "hf:cats", "https://huggingface.co/datasets/cats", "https://evil.example/a.zip", "hf:a/b/../../c",
        "https://huggingface.co/someone/model", "https://huggingface.co/datasets/a/b/wiki/x", "hf:a/b@../c", "/etc/passwd",
        "http://huggingface.co/a/b/resolve/main/x.zip", "https://huggingface.co/a/b/resolve/main/x.zip?token=hf_x",
        "file:///etc/x.zip", "https://civitai.com/models/5",
    ],
)  # fmt: skip
def test_other_texts_are_refused_without_a_question(hubs: Hubs, text: str) -> None:
    with pytest.raises(RefusedUrl):
        plan_address(hubs.network(), None, text)
    assert hubs.seen == [] and hubs.lookups == []


def test_pictures_come_with_their_captions(hubs: Hubs, studio: Studio, control: TaskControl, bring: Bring) -> None:
    dataset_of(hubs, **pictures_with_metadata())
    assert bring() == "6 pictures added to cats, 6 with a caption."
    captions = studio.open("cats").captions()
    assert captions["p0.png"] == "a text of its own" and captions["p5.png"] == "cat 5"
    assert kept(studio) == [] and reasons(control) == {}
    assert {seen.path.rpartition(".")[2] for seen in hubs.seen if "resolve" in seen.path} == {"png", "jsonl", "txt"}
    studio.open("cats").history.undo()
    assert studio.open("cats").pictures() == []


def test_no_more_than_asked_for(hubs: Hubs, studio: Studio, control: TaskControl, bring: Bring) -> None:
    dataset_of(hubs, **pictures_with_metadata())
    assert bring(most=2).startswith("2 pictures added")
    assert studio.open("cats").pictures() == ["p0.png", "p1.png"]
    assert reasons(control) == {}
    with pytest.raises(SafelightError, match="At most 0"):
        bring(most=0)


def test_a_file_that_is_another_one_than_listed_stops_the_import(hubs: Hubs, studio: Studio, bring: Bring) -> None:
    player = dataset_of(hubs, **pictures_with_metadata())
    hubs.on("huggingface.co", f"/datasets/{REPO}/resolve/{COMMIT}/train/p3.png", Reply(body=png("lime", 23)))
    with pytest.raises(FailedDownload, match=r"p3\.png"):
        bring()
    assert "cats" not in {info.name for info in studio.datasets()}
    assert len(kept(studio)) == 1, "what came well stays"
    player.publish()
    before = len(hubs.seen)
    assert bring().startswith("6 pictures added")
    assert sum("resolve" in seen.path for seen in hubs.seen[before:]) < 8, "not all of it was fetched twice"
    assert kept(studio) == []


@needs_sandbox
def test_parquet_shards_come_in_one_after_the_other(
    hubs: Hubs, studio: Studio, control: TaskControl, bring: Bring
) -> None:
    rows = rows_of(0, 3)
    rows[1]["image"] = None
    player = HuggingFacePlayer(
        hubs,
        REPO,
        {
            "data/train-00000-of-00002.parquet": parquet_bytes(rows),
            "data/train-00001-of-00002.parquet": parquet_bytes(rows_of(3, 2)),
            "data/test-00000-of-00001.parquet": parquet_bytes(rows_of(90, 1)),
            "README.md": b"x",
            "preview.png": png("red"),
        },
        kind="datasets",
    )
    player.info["cardData"]["dataset_info"] = {"features": [{"name": "image", "dtype": "image"}, {"name": "text"}]}
    player.publish()
    plan = plan_address(hubs.network(), None, REPO)
    assert (plan.kind, len(plan.files)) == ("parquet", 2)
    assert "Columns: image, text" in plan.facts and "the one for training" in plan.warnings[0]
    assert bring() == "4 pictures added to cats, 4 with a caption. 1 left out."
    assert reasons(control) == {"row 1": "the row holds no picture"}
    assert studio.open("cats").captions() == {f"p{number}.png": f"cat {number}" for number in (0, 2, 3, 4)}
    assert len(studio.open("cats").history.edits()) == 1
    assert kept(studio) == []


@needs_sandbox
def test_another_column_and_a_limit(hubs: Hubs, studio: Studio, bring: Bring) -> None:
    shards = {f"data__train-{number}_dot_parquet": parquet_bytes(rows_of(3 * number, 3)) for number in range(3)}
    dataset_of(hubs, **shards)
    with pytest.raises(RefusedFile, match=r"no column 'colour' of text. It has text, style"):
        bring(column="colour")
    assert bring(column="style", most=4).startswith("4 pictures added")
    assert set(studio.open("cats").captions().values()) == {"ink"}
    fetched = {seen.path for seen in hubs.seen if "/resolve/" in seen.path}
    assert not any("train-2" in path for path in fetched), "what is not needed is not fetched"


@needs_sandbox
def test_a_damaged_shard_is_called_by_its_name(hubs: Hubs, bring: Bring) -> None:
    dataset_of(hubs, data__train_dot_parquet=b"PAR1" + bytes(80) + b"PAR1")
    with pytest.raises(RefusedFile, match=r"^train\.parquet is damaged"):
        bring()


def test_archives_of_a_dataset_and_by_their_address(hubs: Hubs, studio: Studio, bring: Bring) -> None:
    archive = zip_bytes([Member("10_mira/a.png", png("red")), Member("10_mira/a.txt", b"a cat")])
    dataset_of(hubs, data_dot_zip=archive, README_dot_md=b"x")
    assert bring().startswith("1 picture added to cats, 1 with a caption")
    assert studio.open("cats").captions() == {"10_mira/a.png": "a cat"}
    other = zip_bytes([Member("b.png", png("blue"))])
    hubs.on("huggingface.co", "/a/b/resolve/main/set.zip", Reply(body=other, etag='"1"'))
    hubs.on(
        "civitai.com",
        "/api/download/training-data/7",
        Reply(body=zip_bytes([Member("c.png", png("lime"))]), etag='"2"'),
    )
    assert bring("https://huggingface.co/a/b/blob/main/set.zip").startswith("1 picture added")
    assert bring("https://civitai.com/api/download/training-data/7").startswith("1 picture added")
    assert set(studio.open("cats").pictures()) == {"10_mira/a.png", "b.png", "c.png"}
    assert kept(studio) == []


@pytest.mark.parametrize("case", ["climbs out", "bomb", "link"])
def test_a_hostile_archive_of_a_hub_adds_nothing(hubs: Hubs, studio: Studio, bring: Bring, case: str) -> None:
    hubs.on("huggingface.co", "/a/b/resolve/main/set.zip", Reply(body=HOSTILE[case][0](), etag='"1"'))
    with pytest.raises(RefusedFile, match=r"set\.zip") as refused:
        bring("https://huggingface.co/a/b/resolve/main/set.zip")
    assert ".whole" not in str(refused.value)
    assert not list(studio.workspace.datasets_dir.iterdir())


def test_a_web_page_and_a_dataset_without_pictures_are_refused_in_words(hubs: Hubs, bring: Bring) -> None:
    hubs.on("huggingface.co", "/a/b/resolve/main/set.zip", Reply(body=b"<html>", content_type="text/html"))
    with pytest.raises(FailedDownload, match="web page"):
        bring("https://huggingface.co/a/b/resolve/main/set.zip")
    dataset_of(hubs, script_dot_py=b"x", images_dot_tar=b"x")
    with pytest.raises(FailedDownload, match=r"has script\.py, images\.tar|has images\.tar, script\.py"):
        bring()


def test_a_gated_dataset_asks_for_a_login_and_the_token_goes_to_the_hub_only(hubs: Hubs, studio: Studio) -> None:
    player = HuggingFacePlayer(hubs, REPO, {"data.zip": zip_bytes([Member("a.png", png("red"))])}, kind="datasets")
    player.info["gated"] = "auto"
    player.token = "hf_secret"
    player.publish()
    with pytest.raises(NeedsLogin):
        plan_address(hubs.network(), None, REPO)
    token = Secret("hf_secret", str(Service.HUGGING_FACE))
    options = AddressOptions()
    import_address(studio, hubs.network(), token, "cats", REPO, options, TaskControl())
    assert {seen.host for seen in hubs.seen if seen.token} == {"huggingface.co"}
    assert {seen.host for seen in hubs.seen} == {"huggingface.co", "cdn-lfs.hf.co"}


def test_a_cancelled_transfer_goes_on_where_it_was(hubs: Hubs, studio: Studio, control: TaskControl) -> None:
    archive = zip_bytes([Member("a.png", png("red")), Member("b.txt", b"x" * 600_000)])
    hubs.on("huggingface.co", "/a/b/resolve/main/set.zip", Reply(body=archive, etag='"1"', piece=4096, pause=0.02))
    address = "https://huggingface.co/a/b/resolve/main/set.zip"

    class Impatient(TaskControl):
        def progress(self, done: int, total: int, text: str = "") -> None:
            super().progress(done, total, text)
            if text.startswith("Fetching") and done > 20:
                self.cancel()

    with pytest.raises(Cancelled):
        import_address(studio, hubs.network(), None, "cats", address, AddressOptions(), Impatient())
    assert len(kept(studio)) == 1
    hubs.on("huggingface.co", "/a/b/resolve/main/set.zip", Reply(body=archive, etag='"1"'))
    assert import_address(studio, hubs.network(), None, "cats", address, AddressOptions(), control).startswith(
        "1 picture"
    )
    assert "range" in hubs.seen[-1].headers
    assert kept(studio) == []
