"""Parquet files of others: pictures and texts come out in a confined child, and nothing else happens."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from security import parquet
from security.errors import RefusedFile, SafelightError
from security.parquet import look_into, take_group
from security.sandbox import SandboxState, probe

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
needs_sandbox = pytest.mark.skipif(not probe().active, reason=probe().detail)
pytestmark = needs_sandbox


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), color).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table_file(path: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    """As the `datasets` library writes it: image and text columns, some rows in each group."""
    schema = pa.schema(
        [("image", IMAGE), ("text", pa.string()), ("tags", pa.list_(pa.string())), ("label", pa.int64())]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=group)
    return path


def row(color: str, text: str | None = "a text", name: str | None = "a.png") -> dict[str, Any]:
    return {"image": {"bytes": png(color), "path": name}, "text": text, "tags": ["one", "two"], "label": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_pictures_and_texts_come_out_row_group_by_row_group(tmp_path: Path, folder: Path) -> None:
    rows = [row("red"), row("blue", "two\nlines", "../../b.png"), {**row("lime", None, None)}]
    path = table_file(tmp_path / "a.parquet", rows)
    table = look_into(path, folder)
    assert (table.images, table.texts, table.groups) == (("image",), ("text", "tags"), (2, 1))
    first = take_group(path, folder, 0, image="image", text="text", limit=10)
    assert [(one.name, one.text, one.fault) for one in first] == [
        ("a.png", "a text", ""),
        ("../../b.png", "two lines", ""),
    ]
    assert [one.path.read_bytes() for one in first if one.path] == [png("red"), png("blue")]
    assert all(one.path and one.path.parent == folder for one in first)
    other = tmp_path / "other"
    other.mkdir()
    (only,) = take_group(path, other, 1, image="image", text="tags", limit=10)
    assert (only.name, only.text) == ("", "one, two")
    (limited,) = take_group(path, folder, 0, image="image", text="", limit=1)
    assert limited.text == ""


def test_plain_bytes_and_rows_without_a_picture(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"jpg": [png("red"), None], "caption": ["x", "y"]}), path)
    table = look_into(path, folder)
    assert (table.images, table.texts) == (("jpg",), ("caption",))
    first, second = take_group(path, folder, 0, image="jpg", text="caption", limit=10)
    assert first.path is not None
    assert (second.path, second.text, second.fault) == (None, "y", "the row holds no picture")


def test_what_is_no_parquet_is_refused_without_a_reader(tmp_path: Path, folder: Path, monkeypatch: Any) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(parquet, "run_confined", asked)
    path = tmp_path / "a.parquet"
    for data in (b"", b"PAR1", b"PK\x03\x04" + bytes(40), b"PAR1" + bytes(40), bytes(40) + b"PAR1"):
        path.write_bytes(data)
        with pytest.raises(RefusedFile, match=r"a\.parquet is no Parquet file"):
            look_into(path, folder)
    path.write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    monkeypatch.setattr(parquet, "MAX_PARQUET_BYTES", 20)
    with pytest.raises(RefusedFile, match="MiB are allowed"):
        look_into(path, folder)


def test_damage_ends_in_a_refusal(tmp_path: Path, folder: Path) -> None:
    path = table_file(tmp_path / "a.parquet", [row("red"), row("blue")])
    sound = path.read_bytes()
    chance = random.Random(2)
    broken = [b"PAR1" + bytes(60) + b"PAR1", sound[: len(sound) // 2] + sound[-8:]]
    for _ in range(4):
        data = bytearray(sound)
        for _ in range(40):
            data[chance.randrange(4, len(data) - 4)] = chance.randrange(256)
        broken.append(bytes(data))
    refused = 0
    for data in broken:
        path.write_bytes(data)
        try:
            look_into(path, folder)
            take_group(path, folder, 0, image="image", text="text", limit=10)
        except (RefusedFile, SafelightError) as error:
            assert "a.parquet" in str(error)
            refused += 1
    assert refused >= 4


def test_columns_that_are_not_there_are_a_sentence(tmp_path: Path, folder: Path) -> None:
    path = table_file(tmp_path / "a.parquet", [row("red")])
    with pytest.raises(RefusedFile, match=r"a\.parquet is damaged or of an unusual kind"):
        take_group(path, folder, 0, image="nothing", text="", limit=10)
    with pytest.raises(RefusedFile):
        take_group(path, folder, 7, image="image", text="", limit=10)


def test_too_large_pictures_stay_in_the_file(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table_file(tmp_path / "a.parquet", [row("red")])
    monkeypatch.setattr(parquet, "MAX_IMAGE_BYTES", 50)
    (one,) = take_group(path, folder, 0, image="image", text="", limit=10)
    assert one.path is None and "50 are allowed" in one.fault
    monkeypatch.undo()
    monkeypatch.setattr(parquet, "MAX_PARQUET_GROUP_BYTES", 50)
    with pytest.raises(RefusedFile, match="over 50 bytes of pictures"):
        take_group(path, folder, 0, image="image", text="", limit=10)


def test_the_child_is_not_believed(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that was taken over may write anything into its folder: links, other names, no JSON."""
    path = table_file(tmp_path / "a.parquet", [row("red")])
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    ask = parquet._ask

    def taken_over(lines: list[str]) -> None:
        def answer(*arguments: Any) -> Any:
            told = ask(*arguments)
            (folder / "5").unlink(missing_ok=True)
            (folder / "5").symlink_to(secret)
            (folder / parquet.ROWS_NAME).write_text("\n".join(lines))
            return told

        monkeypatch.setattr(parquet, "_ask", answer)

    files = ["../secret.png", "5", "/etc/hostname", 7, None, "99"]
    taken_over([json.dumps({"name": "a\x1b[31m", "text": 5, "file": file}) for file in files])
    rows = take_group(path, folder, 0, image="image", text="", limit=10)
    assert [one.path for one in rows] == [None] * len(files)
    assert {one.name for one in rows} == {"a [31m"} and {one.text for one in rows} == {""}
    taken_over(["[" * 5000])
    with pytest.raises(SafelightError, match="makes no sense"):
        take_group(path, folder, 0, image="image", text="", limit=10)


def test_without_a_sandbox_nothing_is_opened(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table_file(tmp_path / "a.parquet", [row("red")])
    monkeypatch.setattr(parquet, "probe", lambda: SandboxState(False, "Off: only Linux has it."))
    with pytest.raises(SafelightError, match=r"only opened in a sandbox, and there is none here\. Off"):
        look_into(path, folder)
