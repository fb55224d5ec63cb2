"""What a dataset says of itself: round trips, and files that somebody else wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.errors import RefusedConfig, SafelightError
from trainer.dataset.settings import (
    MAX_REPEATS,
    MAX_ZOOM,
    DatasetSettings,
    Mark,
    load_marks,
    load_settings,
    marks_bytes,
    mask_path,
    settings_bytes,
)


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / ".safelight").mkdir(exist_ok=True)
    (folder / ".safelight" / name).write_bytes(data)
    return folder


def test_a_plain_folder_has_the_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path) == DatasetSettings() and load_marks(tmp_path) == {}
    assert mask_path(tmp_path, "10_a/b.png") == tmp_path / ".safelight" / "masks" / "10_a" / "b.png.png"
    assert list(tmp_path.iterdir()) == []


def test_settings_and_marks_come_back(tmp_path: Path) -> None:
    settings = DatasetSettings("mira_v1", {"": 2, "10_größe/x": 10}, "mira")
    assert load_settings(written(tmp_path, "dataset.json", settings_bytes(settings))) == settings
    marks = {"a.png": Mark((0.25, 1.0), 2.0), "sub/ü.jpg": Mark((0, 0.5), 1)}
    data = marks_bytes(marks)
    assert data is not None and load_marks(written(tmp_path, "marks.json", data)) == marks
    assert marks_bytes({}) is None


SHARES = st.floats(0, 1)


@given(
    marks=st.dictionaries(
        st.text(st.characters(codec="utf-8")), st.builds(Mark, st.tuples(SHARES, SHARES), st.floats(1, MAX_ZOOM))
    )
)
def test_any_marks_come_back(tmp_path_factory: pytest.TempPathFactory, marks: dict[str, Mark]) -> None:
    folder = tmp_path_factory.getbasetemp() / "marks"
    folder.mkdir(exist_ok=True)
    if any("\0" in name for name in marks):
        return  # no file has such a name
    data = marks_bytes(marks)
    if data is not None:
        assert load_marks(written(folder, "marks.json", data)) == marks


BAD_SETTINGS = [
    b"", b"\xff", b"[]", b"{", b'{"version": 2}', b"{}", b'{"version": 1, "extra": 1}', b'{"version": 1, "version": 1}',
    b'{"version": 1, "trigger_word": 5}', b'{"version": 1, "trigger_word": "a\\nb"}', b'{"version": 1, "repeats": []}',
    b'{"version": 1, "trigger_word": "' + b"x" * 201 + b'"}', b'{"version": 1, "repeats": {"a": 0}}',
    b'{"version": 1, "repeats": {"a": 1.5}}', b'{"version": 1, "repeats": {"a": true}}',
    b'{"version": 1, "repeats": {"a": %d}}' % (MAX_REPEATS + 1), b'{"version": 1, "repeats": {"../a": 1}}',
    b'{"version": 1, "repeats": {"/a": 1}}', b'{"version": 1, "repeats": {".git": 1}}', b"[" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("data", BAD_SETTINGS)
def test_damaged_settings_are_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RefusedConfig, match=r"dataset\.json"):
        load_settings(written(tmp_path, "dataset.json", data))


BAD_MARKS = [
    b'{"version": 1, "marks": []}', b'{"version": 1, "marks": {"a": 1}}', b'{"version": 1, "marks": {"a": {"x": 1}}}',
    b'{"version": 1, "marks": {"a": {"focus": [0.5]}}}', b'{"version": 1, "marks": {"a": {"focus": [0.5, 1.1]}}}',
    b'{"version": 1, "marks": {"a": {"focus": [0.5, -0.1]}}}', b'{"version": 1, "marks": {"a": {"focus": [true, 0.1]}}}',
    b'{"version": 1, "marks": {"a": {"zoom": 0.9}}}', b'{"version": 1, "marks": {"a": {"zoom": 1e9}}}',
    b'{"version": 1, "marks": {"a": {"zoom": 1e999}}}', b'{"version": 1, "marks": {"a": {"zoom": NaN}}}',
]  # fmt: skip


@pytest.mark.parametrize("data", BAD_MARKS)
def test_damaged_marks_are_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RefusedConfig, match=r"marks\.json"):
        load_marks(written(tmp_path, "marks.json", data))


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".safelight").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SafelightError, match="link"):
        load_settings(tmp_path / "set")
    folder = written(tmp_path, "x", b"")
    (folder / ".safelight" / "marks.json").symlink_to(folder / ".safelight" / "x")
    with pytest.raises(SafelightError, match="link"):
        load_marks(folder)


@pytest.mark.parametrize(
    "settings", [DatasetSettings("a\nb"), DatasetSettings(repeats={"a": 0}), DatasetSettings("\ud800")]
)
def test_bad_settings_are_not_written(settings: DatasetSettings) -> None:
    with pytest.raises(SafelightError):
        settings_bytes(settings)


@pytest.mark.parametrize("mark", [Mark((0.5, 2.0)), Mark(zoom=0.5), Mark(zoom=float("nan"))])
def test_bad_marks_are_not_written(mark: Mark) -> None:
    with pytest.raises(SafelightError):
        marks_bytes({"a.png": mark})
