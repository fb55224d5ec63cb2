"""Masks: painted ones, from transparency, and by a network whose answer can be worked out by hand."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from security.errors import SafelightError
from trainer.dataset.masks import (
    MaskMode,
    invert_masks,
    masks_by_network,
    masks_from_alpha,
    read_mask,
    save_painted,
)
from trainer.dataset.settings import mask_path
from trainer.dataset.studio import Dataset, Studio
from trainer.tagging.base import TaggerFiles, TaggerRow, TaggingOptions, row_faults
from trainer.tagging.cutouts import ANSWERS, FITS, CutoutNetwork, cutouts, find_cutout
from trainer.workspace import TAGGERS, Workspace

SIDE = 32


@dataclass
class Told:
    """Stands for the task that the page follows."""

    cancel_after: int = 10**9
    skipped: dict[str, str] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.done.append(done)

    def skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason

    def cancelled(self) -> bool:
        return bool(self.done) and self.done[-1] >= self.cancel_after


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def square_on_black(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size)
    image.paste((250, 250, 250), box)
    return image


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Workspace.open(tmp_path / "workspace"))


@pytest.fixture
def dataset(studio: Studio) -> Dataset:
    made = studio.create("mira")
    cut = Image.new("RGBA", (48, 40), (200, 0, 0, 255))
    cut.paste((0, 0, 0, 0), (0, 0, 24, 40))
    save(made.path / "cut.png", cut)
    save(made.path / "10_sub/plain.png", square_on_black((64, 32), (16, 8, 48, 24)))
    save(made.path / "opaque.png", Image.new("RGBA", (40, 40), (1, 2, 3, 255)))
    (made.path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return made


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def levels(dataset: Dataset, picture: str) -> np.ndarray:
    mask = read_mask(dataset, picture)
    assert mask is not None
    return np.asarray(mask)


# ---- painted ---------------------------------------------------------------------------------------------------------


def test_a_painted_mask_is_grey_and_as_large_as_the_picture(studio: Studio, dataset: Dataset) -> None:
    painted = Image.new("RGBA", (24, 20), (255, 255, 255, 255))
    painted.paste((0, 0, 0, 255), (0, 0, 12, 20))
    save_painted(studio, dataset, "cut.png", png(painted))
    with Image.open(mask_path(dataset.path, "cut.png")) as stored:
        assert (stored.mode, stored.size, stored.format) == ("L", (48, 40), "PNG")
    mask = levels(dataset, "cut.png")
    assert mask[:, :22].max() == 0
    assert mask[:, 26:].min() == 255
    dataset.history.undo()
    assert read_mask(dataset, "cut.png") is None


def test_a_white_mask_is_none(studio: Studio, dataset: Dataset) -> None:
    save_painted(studio, dataset, "cut.png", png(Image.new("L", (10, 10))))
    assert levels(dataset, "cut.png").max() == 0
    save_painted(studio, dataset, "cut.png", png(Image.new("L", (10, 10), 255)))
    assert read_mask(dataset, "cut.png") is None


@pytest.mark.parametrize("painted", [b"no picture", b"\x89PNG\r\n\x1a\n broken", b"\0" * (8 * 2**20 + 1)])
def test_a_painted_mask_that_is_none(studio: Studio, dataset: Dataset, painted: bytes) -> None:
    with pytest.raises(SafelightError):
        save_painted(studio, dataset, "cut.png", painted)
    with pytest.raises(SafelightError):
        save_painted(studio, dataset, "../cut.png", png(Image.new("L", (10, 10))))
    assert dataset.masks() == set()
    assert dataset.revision == 0


# ---- from transparency, inverted -------------------------------------------------------------------------------------


def test_masks_from_transparency(dataset: Dataset) -> None:
    told = Told()
    report = masks_from_alpha(dataset, dataset.pictures(), MaskMode.KEEP, told)
    assert report == "1 mask written."
    assert dataset.masks() == {"cut.png"}
    mask = levels(dataset, "cut.png")
    assert mask.shape == (40, 48)
    assert mask[:, :24].max() == 0
    assert mask[:, 24:].min() == 255
    assert set(told.skipped) == {"10_sub/plain.png", "opaque.png", "broken.png"}
    assert told.skipped["opaque.png"] == "nothing in it is transparent"


def test_a_mask_is_kept_or_replaced(studio: Studio, dataset: Dataset) -> None:
    save_painted(studio, dataset, "cut.png", png(Image.new("L", (10, 10), 100)))
    told = Told()
    report = masks_from_alpha(dataset, ["cut.png"], MaskMode.KEEP, told)
    assert report == "0 masks written. 1 picture has one already and kept it."
    assert levels(dataset, "cut.png").min() == 100
    masks_from_alpha(dataset, ["cut.png"], MaskMode.REPLACE, told)
    assert levels(dataset, "cut.png").min() == 0


def test_inverting_twice_gives_back_the_bytes(dataset: Dataset) -> None:
    masks_from_alpha(dataset, ["cut.png"], MaskMode.KEEP, Told())
    before = mask_path(dataset.path, "cut.png").read_bytes()
    assert invert_masks(dataset, dataset.pictures(), Told()) == "1 mask written."
    assert levels(dataset, "cut.png")[:, :24].min() == 255
    invert_masks(dataset, dataset.pictures(), Told())
    assert mask_path(dataset.path, "cut.png").read_bytes() == before
    for _ in range(3):
        dataset.history.undo()
    assert dataset.masks() == set()


def test_a_cancelled_task_keeps_what_it_wrote(dataset: Dataset) -> None:
    for number in range(20):
        save(dataset.path / f"many{number:02}.png", Image.new("RGBA", (8, 8), (0, 0, 0, 100)))
    names = [name for name in dataset.pictures() if name.startswith("many")]
    told = Told(cancel_after=8)
    report = masks_from_alpha(dataset, names, MaskMode.KEEP, told)
    assert report.startswith("Cancelled after 8 of 20 pictures. 8 masks written.")
    assert dataset.masks() == set(names[:8])
    dataset.history.undo()
    assert dataset.masks() == set()


# ---- by a network ----------------------------------------------------------------------------------------------------


def brightness_network(path: Path, batch: object = 1, gain: float = 1.0) -> None:
    """A network as U²-Net's: (B, 3, 32, 32) in, the mean of the colours as (B, 1, 32, 32) out, and a second output."""
    nodes = [
        helper.make_node("ReduceMean", ["pictures"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["grey", "gain"], ["first"]),
        helper.make_node("Neg", ["grey"], ["second"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 1, SIDE, SIDE])
            for name in ("first", "second")
        ],
        [numpy_helper.from_array(np.array(gain, np.float32), "gain")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def row_of(name: str = "u2netp", **settings: object) -> TaggerRow:
    """A row of the catalog without its hash: the tiny network takes the real one's place."""
    row = find_cutout(name)
    return replace(row, known={}, settings={**row.settings, **settings})


def shelved(studio: Studio, row: TaggerRow) -> Path:
    folder = studio.workspace.on_shelf(TAGGERS).models_dir / row.name
    brightness_network(folder / row.files[0])
    return folder


@pytest.mark.parametrize("name", cutouts())
def test_masks_by_a_network(studio: Studio, dataset: Dataset, name: str) -> None:
    row = row_of(name)
    shelved(studio, row)
    told = Told()
    report = masks_by_network(studio.workspace, dataset, dataset.pictures(), row, MaskMode.KEEP, told)
    assert report == "3 masks written."
    assert set(told.skipped) == {"broken.png"}
    mask = levels(dataset, "10_sub/plain.png")
    assert mask.shape == (32, 64)
    assert mask[12:20, 22:42].min() > 180, "the bright square is the subject"
    assert mask[:4, :10].max() < (10 if row.settings["answer"] != "logits" else 128)
    assert dataset.history.edits()[0].label == f"Masks by {row.title}"
    dataset.history.undo()
    assert dataset.masks() == set()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("u2netp", 255, [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ("u2netp", 100, [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ("isnet-general-use", 255, [0.5, 0.5, 0.5]),
        ("isnet-anime", 51, [0.2, 0.2, 0.2]),
        ("birefnet-lite", 51, [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]),
    ],
)
def test_numbers_are_those_that_the_authors_use(tmp_path: Path, name: str, value: int, expected: list[float]) -> None:
    fitted = opened(tmp_path, row_of(name)).prepare(Image.new("RGB", (50, 50), (value, value, value)))
    assert fitted.numbers.shape == (3, SIDE, SIDE)
    assert fitted.numbers[:, 5, 5] == pytest.approx(expected, abs=1e-5)


def test_a_padded_picture_is_cut_out_of_its_square(tmp_path: Path) -> None:
    fitted = opened(tmp_path, row_of("isnet-anime")).prepare(Image.new("RGB", (60, 30), (255, 255, 255)))
    assert fitted.box == (0, 8, 32, 24)
    assert fitted.numbers[:, :8].max() == fitted.numbers[:, 24:].max() == 0
    (cutout,) = opened(tmp_path, row_of("isnet-anime")).describe([fitted])
    assert cutout.subject.size == (32, 16)
    assert cutout.mask().size == (60, 30)
    assert cutout.mask().getextrema() == (255, 255)


def opened(folder: Path, row: TaggerRow, **network: object) -> CutoutNetwork:
    path = folder / row.files[0]
    brightness_network(path, **network)  # type: ignore[arg-type]
    made = CutoutNetwork(TaggingOptions(), row)
    made.load(TaggerFiles(folder, {row.files[0]: hashlib.sha256(path.read_bytes()).hexdigest()}), "cpu")
    return made


def test_a_picture_without_a_subject(tmp_path: Path) -> None:
    network = opened(tmp_path, row_of("u2netp"))
    (cutout,) = network.describe([network.prepare(Image.new("RGB", (20, 20)))])
    assert cutout.mask().getextrema() == (0, 0)


def test_numbers_that_are_none_are_no_mask(tmp_path: Path) -> None:
    network = opened(tmp_path, row_of("u2netp"), gain=float("inf"))
    with pytest.raises(SafelightError, match="NaN"):
        network.describe([network.prepare(square_on_black((20, 20), (5, 5, 9, 9)))])


def test_a_network_that_is_not_here_or_not_the_known_one(studio: Studio, dataset: Dataset) -> None:
    with pytest.raises(SafelightError, match="not in the workspace yet"):
        masks_by_network(studio.workspace, dataset, ["cut.png"], row_of(), MaskMode.KEEP, Told())
    shelved(studio, row_of())
    with pytest.raises(SafelightError, match="is not the file of"):
        masks_by_network(studio.workspace, dataset, ["cut.png"], find_cutout("u2netp"), MaskMode.KEEP, Told())
    with pytest.raises(SafelightError, match="Did you mean u2netp"):
        find_cutout("u2net")
    assert dataset.revision == 0


def test_the_catalog_is_sound() -> None:
    for row in cutouts().values():
        faults = [fault for fault in row_faults(row) if fault != "kind, title or reason is missing"]
        assert faults == []
        assert row.title
        assert row.why.endswith(".")
        assert row.licence
        assert row.num_bytes > 10**6
        assert row.settings["fit"] in FITS
        assert row.settings["answer"] in ANSWERS
        assert len(row.files) == 1
