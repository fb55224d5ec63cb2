"""Converting a checkpoint: what comes out, what is refused, and what the sandbox holds back if the checks were not there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import stat
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from security import convert
from security.convert import Conversion, convert_checkpoint, describe
from security.convert_child import WRAPPERS, NotTaken, take_tensors
from security.errors import RefusedFile, SafelightError
from security.sandbox import Limits, probe, run_confined
from tests.security.bad_checkpoints import LIVE, bad_checkpoints, payloads
from tests.security.landlock_threads import in_full_thread

pytestmark = pytest.mark.skipif(not probe().active, reason=f"no sandbox here: {probe().detail}")

LIMITS = Limits(memory_bytes=6 << 30, cpu_seconds=120, file_bytes=1 << 30)


def saved(folder: Path, value: Any, name: str = "model.ckpt") -> Path:
    path = folder / name
    torch.save(value, path)
    return path


def test_tensors_come_out_as_they_went_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    tensors = {
        "fp32": torch.randn(3, 2),
        "fp16": torch.randn(3).half(),
        "bf16": torch.randn(3).bfloat16(),
        "float8": torch.randn(3).to(torch.float8_e4m3fn),
        "int64": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "one number": torch.tensor(2.5),
        "nothing": torch.zeros(0, 3),
        "turned": base.T,
        "part": base[1:3, ::2],
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "tied": base,
    }
    source = saved(tmp_path, {"state_dict": OrderedDict(tensors), "global_step": 7, "epoch": 1.5, "hyper": {"lr": 1}})
    before = source.read_bytes()
    conversion = convert_checkpoint(source, tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name].float(), value.detach().float()), name
    assert conversion == Conversion(
        12, ("global_step", "epoch", "hyper"), (tmp_path / "model.safetensors").stat().st_size
    )
    assert "12 tensors" in describe(conversion) and "global_step, epoch, hyper" in describe(conversion)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o600
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt", "model.safetensors"]


def test_bad_checkpoints_are_refused_without_a_trace(tmp_path: Path) -> None:
    """The figure: all of them, none accepted, no marker made, nothing left behind."""
    marker, source = tmp_path / "marker", tmp_path / "model.ckpt"
    accepted = []
    for name, data in bad_checkpoints(str(marker)).items():
        source.write_bytes(data)
        try:
            convert_checkpoint(source, tmp_path / "model.safetensors")
            accepted.append(name)
        except RefusedFile:
            continue
    assert not accepted
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_without_the_checks_the_sandbox_still_holds(tmp_path: Path) -> None:
    """Pickles loaded as nobody should, in the converter's sandbox: not one of the payloads that work leaves a marker."""
    pickles, private, outside = tmp_path / "pickles", tmp_path / "private", tmp_path / "outside"
    for folder in (pickles, private, outside):
        folder.mkdir()
    names = {key: f"{outside}/marker-{number}" for number, key in enumerate(sorted(LIVE))}
    for index, data in enumerate(payloads(names.__getitem__).values()):
        (pickles / f"{index:02d}.pkl").write_bytes(data)
    tests = Path(__file__).resolve().parents[1]
    done = run_confined(
        "tests.security.naive_child",
        [str(pickles)],
        folder=private,
        limits=LIMITS,
        timeout_seconds=120,
        read=[tests, pickles],
    )
    assert done.returncode == 0, done.stderr
    results = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("result: ")]
    assert len(set(results)) == len(LIVE)  # it did come to all of them
    assert list(outside.iterdir()) == []


def run_child(source: Path, folder: Path) -> tuple[int, dict[str, Any] | None]:
    """The converter's child on a file that nothing has checked."""
    folder.mkdir()
    descriptor = os.open(source, os.O_RDONLY)
    try:
        done = run_confined(
            "security.convert_child",
            [str(descriptor), str(folder / "out.safetensors")],
            folder=folder,
            limits=LIMITS,
            timeout_seconds=120,
            descriptors=[descriptor],
        )
    finally:
        os.close(descriptor)
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else None


def test_the_child_loads_tensors_only_whatever_reaches_it(tmp_path: Path) -> None:
    source = tmp_path / "model.ckpt"
    source.write_bytes(bad_checkpoints(str(tmp_path / "marker"))["call: os.system"])
    code, report = run_child(source, tmp_path / "private")
    assert code != 0 and report is None
    assert list((tmp_path / "private").iterdir()) == [] and not (tmp_path / "marker").exists()


NOT_TAKEN: dict[str, tuple[Any, str]] = {
    "a list": ([torch.ones(1)], "no table of tensors"),
    "a tensor": (torch.ones(1), "no table of tensors"),
    "no tensors": ({"state_dict": {"step": 1}}, "no tensors by name"),
    "names that are numbers": ({5: torch.ones(1)}, "no tensors by name"),
    "strides of zero": ({"x": torch.ones(1).expand(1000)}, "more numbers than the file holds"),
    "sparse": ({"x": torch.eye(2).to_sparse()}, "sparse"),
    "on no device": ({"x": torch.ones(1, device="meta")}, "of a device"),
    "conjugated": ({"x": torch.ones(2, dtype=torch.complex64).conj()}, "of the type"),
    "a type that safetensors lacks": ({"x": torch.ones(2, dtype=torch.complex128)}, "of the type"),
    "more than the file": ({f"t{index}": torch.ones(4000) for index in range(40)}, "far larger than the file"),
    "too many other things": ({"x": torch.ones(1), **{f"n{index}": 1 for index in range(300)}}, "300 things"),
}


@pytest.mark.parametrize(("loaded", "words"), NOT_TAKEN.values(), ids=NOT_TAKEN.keys())
def test_the_child_refuses_what_is_no_table_of_tensors(loaded: Any, words: str) -> None:
    with pytest.raises(NotTaken, match=words):
        take_tensors(loaded, max_bytes=100_000)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_usual_wrappers_are_opened_and_what_is_no_tensor_is_named(wrapper: str) -> None:
    loaded = {"epoch": 1, wrapper: {"weight": torch.ones(2), "n": 3, "list": [torch.ones(1)], 5: torch.ones(1)}}
    tensors, dropped = take_tensors(loaded, max_bytes=100)
    assert tensors.keys() == {"weight"} and dropped == ["epoch", "n", "list", "5"]


def test_a_child_that_wants_too_much_memory_ends_and_is_told_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_MEMORY_BYTES", 1 << 20)
    source = saved(tmp_path, {"weight": torch.ones(2)})
    with pytest.raises(SafelightError, match=r"model\.ckpt could not be converted"):
        convert_checkpoint(source, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_a_converter_that_is_killed_leaves_nothing_and_is_told_in_words(tmp_path: Path) -> None:
    source = saved(tmp_path, {"state_dict": {f"{number}": torch.randn(256, 256) for number in range(200)}})
    caught: list[SafelightError] = []

    def convert_it() -> None:
        try:
            convert_checkpoint(source, tmp_path / "model.safetensors")
        except SafelightError as error:
            caught.append(error)

    thread = threading.Thread(target=convert_it)
    thread.start()
    while thread.is_alive():
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # a thread or a child that ended meanwhile
                for child in (task / "children").read_text().split():
                    if "convert_child" in Path(f"/proc/{child}/cmdline").read_text():
                        os.kill(int(child), signal.SIGKILL)
        thread.join(0.01)
    assert "the converter was ended from outside (SIGKILL)" in str(caught[0]) and "try again" in str(caught[0])
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]
    convert_checkpoint(source, tmp_path / "model.safetensors")


def test_without_a_sandbox_nothing_is_converted(tmp_path: Path) -> None:
    source = saved(tmp_path, {"weight": torch.ones(2)})
    errors: list[str] = []

    def work() -> None:
        with pytest.raises(SafelightError, match=r"only be converted in a sandbox.*Get the \.safetensors") as caught:
            convert_checkpoint(source, tmp_path / "model.safetensors")
        errors.append(str(caught.value))

    in_full_thread(work)
    assert errors and not (tmp_path / "model.safetensors").exists()


def test_nothing_is_replaced(tmp_path: Path) -> None:
    source = saved(tmp_path, {"weight": torch.ones(2)})
    target = tmp_path / "model.safetensors"
    target.write_text("mine")
    with pytest.raises(SafelightError, match="exists already"):
        convert_checkpoint(source, target)
    assert target.read_text() == "mine"
    with pytest.raises(SafelightError, match=r"does not end in \.safetensors"):
        convert_checkpoint(source, tmp_path / "model.ckpt2")
    with pytest.raises(SafelightError, match="is not there or cannot be written"):
        convert_checkpoint(source, tmp_path / "nowhere" / "model.safetensors")


def test_links_folders_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, {"weight": torch.ones(2)})
    (tmp_path / "link.ckpt").symlink_to(source)
    (tmp_path / "folder.ckpt").mkdir()
    os.mkfifo(tmp_path / "pipe.ckpt")
    for name in ("link.ckpt", "folder.ckpt", "pipe.ckpt", "missing.ckpt"):
        with pytest.raises(RefusedFile, match=f"^{name} "):
            convert_checkpoint(tmp_path / name, tmp_path / "out.safetensors")


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, {f"t{index}": torch.ones(2) for index in range(50)})
    done = threading.Event()

    def write_on() -> None:
        while not done.wait(0.01):
            os.utime(source)

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        with pytest.raises(RefusedFile, match="changed while it was converted"):
            convert_checkpoint(source, tmp_path / "out.safetensors")
    finally:
        done.set()
        writer.join()
    assert not (tmp_path / "out.safetensors").exists()


def test_a_damaged_download_is_named_as_such(tmp_path: Path) -> None:
    source = saved(tmp_path, {"weight": torch.ones(2000)})
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.getinfo("model/data/0").header_offset
    data[at + 3000] ^= 1
    source.write_bytes(data)
    with pytest.raises(RefusedFile, match="checksum of data/0 is wrong"):
        convert_checkpoint(source, tmp_path / "out.safetensors")


def test_a_refusal_names_the_file_and_where_tensors_must_be(tmp_path: Path) -> None:
    with pytest.raises(RefusedFile, match=r"^embedding\.pt is .*\(string_to_param, name\).*under state_dict, "):
        nested = {"string_to_param": {"*": torch.ones(2)}, "name": "cat"}
        convert_checkpoint(saved(tmp_path, nested, "embedding.pt"), tmp_path / "a.safetensors")
    with pytest.raises(RefusedFile, match=r"^odd\.pt is not converted. What came of it has the tensor name"):
        convert_checkpoint(saved(tmp_path, {"a\nb": torch.ones(2)}, "odd.pt"), tmp_path / "a.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embedding.pt", "odd.pt"]
