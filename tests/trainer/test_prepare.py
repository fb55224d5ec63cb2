"""Prepared versions of a dataset: what is done to pictures, masks, crops and captions, and that the original stays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageOps

from security.errors import Cancelled, RefusedConfig, RefusedFile, SafelightError
from security.images import open_image
from tests.messy import encoded, photo
from trainer.config.schema import TrainConfig
from trainer.dataset import upscaling
from trainer.dataset.cache import load_pixels
from trainer.dataset.plan import plan_dataset
from trainer.dataset.prepare import PrepareOptions, prepare_dataset, prepare_options
from trainer.dataset.settings import DatasetSettings, Mark, mask_path
from trainer.dataset.studio import Dataset, Studio
from trainer.dataset.upscaling import list_upscalers, open_upscaler
from trainer.tasks import TaskControl
from trainer.workspace import Workspace

CONFIG = TrainConfig.model_validate({"dataset": {"resolution": 64}})


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(Workspace.open(tmp_path / "workspace"))


@pytest.fixture
def dataset(studio: Studio) -> Dataset:
    """A photo with all that can belong to it, a JPEG in a sub-folder, a drawing with transparency, one without caption."""
    made = studio.create("mine")
    put(made, "cup.png", photo("coffee.png").resize((300, 200)), "a cup")
    put(made, "10_cat/cat.JPG", photo("chelsea.png").resize((180, 240)), "cat, whiskers", format="JPEG")
    clear = photo("moon.png").resize((128, 128)).convert("RGBA")
    clear.paste((255, 0, 0, 0), (0, 0, 64, 128))
    put(made, "clear.png", clear, "moon")
    put(made, "bare.webp", photo("brick.png").resize((90, 60)), None, format="WEBP", lossless=True)
    mask = Image.new("L", (300, 200))
    mask.paste(255, (200, 0, 300, 200))
    made.set_masks("mask", {"cup.png": encoded(mask)})
    made.set_marks("mark", {"cup.png": Mark((0.9, 0.5), 1.0)})
    made.set_settings("settings", DatasetSettings(trigger_word="mine", repeats={"10_cat": 3}))
    return made


def put(dataset: Dataset, name: str, image: Image.Image, caption: str | None, **options: Any) -> None:
    path = dataset.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image, **options))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def files(dataset: Dataset) -> dict[str, str]:
    return {
        path.relative_to(dataset.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in dataset.path.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def make(studio: Studio, dataset: Dataset) -> Callable[..., Dataset]:
    """Prepares a version with these options; the original must not have changed."""

    def prepared(*names: str, **options: Any) -> Dataset:
        before = files(dataset)
        prepare_dataset(studio, dataset, "new", prepare_options(options), CONFIG, names=names or None)
        assert files(dataset) == before
        return studio.open("new")

    return prepared


def image_of(dataset: Dataset, name: str) -> Image.Image:
    return open_image(dataset.path / name)


def same(one: Image.Image, other: Image.Image) -> bool:
    return numpy.array_equal(numpy.asarray(one.convert("RGBA")), numpy.asarray(other.convert("RGBA")))


def test_everything_that_belongs_to_a_picture_comes_along(dataset: Dataset, make: Callable[..., Dataset]) -> None:
    new = make(longest_side=150)
    assert new.pictures() == ["10_cat/cat.jpg", "bare.webp", "clear.png", "cup.png"]
    assert new.captions() == {"10_cat/cat.jpg": "cat, whiskers", "clear.png": "moon", "cup.png": "a cup"}
    assert new.settings == DatasetSettings("mine", {"10_cat": 3}, made_from="mine")
    assert new.marks == {"cup.png": Mark((0.9, 0.5), 1.0)} and new.masks() == {"cup.png"}
    sizes = {name: image_of(new, name).size for name in new.pictures()}
    assert sizes == {
        "10_cat/cat.jpg": (112, 150),
        "bare.webp": (90, 60),
        "clear.png": (128, 128),
        "cup.png": (150, 100),
    }
    mask = open_image(mask_path(new.path, "cup.png"))
    assert (mask.size, mask.getpixel((90, 50)), mask.getpixel((110, 50))) == ((150, 100), 0, 255)
    for name in ("bare.webp", "clear.png"):  # nothing was done to these
        assert (new.path / name).read_bytes() == (dataset.path / name).read_bytes()
    assert new.history.edits() == []


def test_squares_are_cut_around_the_chosen_middle(dataset: Dataset, make: Callable[..., Dataset]) -> None:
    new = make(crop="square", format="png")
    assert same(image_of(new, "cup.png"), image_of(dataset, "cup.png").crop((100, 0, 300, 200)))
    assert same(image_of(new, "10_cat/cat.png"), image_of(dataset, "10_cat/cat.JPG").crop((0, 30, 180, 210)))
    assert new.marks == {}
    assert open_image(mask_path(new.path, "cup.png")).getextrema() == (0, 255)


def test_a_chosen_crop_that_zooms_makes_the_square_smaller(dataset: Dataset, make: Callable[..., Dataset]) -> None:
    dataset.set_marks("near", {"cup.png": Mark((0.5, 0.5), 2.0)})
    assert same(
        image_of(make("cup.png", crop="square"), "cup.png"), image_of(dataset, "cup.png").crop((100, 50, 200, 150))
    )


def test_the_training_crop_is_what_training_sees(
    studio: Studio, dataset: Dataset, make: Callable[..., Dataset]
) -> None:
    """To the pixel: the prepared pictures are what the original ones become in a batch."""
    wanted = plan_dataset(
        studio.workspace, CONFIG.model_copy(update={"dataset": CONFIG.dataset.model_copy(update={"folder": "mine"})})
    )
    new = make(crop="training", format="png", background="#ffffff")
    for name, placed in wanted.of_source().items():
        seen = load_pixels(dataset.path / name, placed.placement, flip=False)
        made = image_of(new, str(Path(name).with_suffix(".png")))
        assert made.size == placed.placement.bucket
        pixels = numpy.asarray(made.convert("RGB"), dtype=numpy.float32) / 127.5 - 1.0
        assert numpy.array_equal(seen[0].permute(1, 2, 0).numpy(), pixels), name
    again = plan_dataset(
        studio.workspace, CONFIG.model_copy(update={"dataset": CONFIG.dataset.model_copy(update={"folder": "new"})})
    )
    assert {row.size: row.num_pictures for row in again.buckets} == {
        row.size: row.num_pictures for row in wanted.buckets
    }
    assert all(one.placement.resized == one.placement.original for one in again.placed)


def test_mirrored_copies_have_captions_and_mirrored_masks(dataset: Dataset, make: Callable[..., Dataset]) -> None:
    new = make(mirror="add")
    assert len(new.pictures()) == 8 and new.captions()["cup-mirrored.png"] == "a cup"
    assert same(image_of(new, "cup-mirrored.png"), ImageOps.mirror(image_of(dataset, "cup.png")))
    assert new.marks["cup-mirrored.png"].focus == pytest.approx((0.1, 0.5)) and new.marks["cup.png"].focus == (0.9, 0.5)
    mask = open_image(mask_path(new.path, "cup-mirrored.png"))
    assert (mask.getpixel((50, 50)), mask.getpixel((250, 50))) == (255, 0)


def test_mirroring_all_leaves_as_many(dataset: Dataset, make: Callable[..., Dataset]) -> None:
    new = make(mirror="all")
    assert new.pictures() == ["10_cat/cat.jpg", "bare.webp", "clear.png", "cup.png"]
    assert same(image_of(new, "bare.webp"), ImageOps.mirror(image_of(dataset, "bare.webp")))


def test_transparency_gets_a_colour_or_stays(dataset: Dataset, make: Callable[..., Dataset]) -> None:
    new = make("clear.png", "cup.png", background="#00ff80")
    assert image_of(new, "clear.png").convert("RGBA").getpixel((10, 10)) == (0, 255, 128, 255)
    assert (new.path / "cup.png").read_bytes() == (dataset.path / "cup.png").read_bytes()


def test_transparency_survives_scaling_without_its_hidden_colour(make: Callable[..., Dataset]) -> None:
    pixels = numpy.asarray(image_of(make("clear.png", longest_side=30), "clear.png"), dtype=int).reshape(-1, 4)
    assert pixels.shape == (900, 4) and (pixels[:, 3] == 0).any() and ((pixels[:, 3] > 9) & (pixels[:, 3] < 99)).any()
    seen = pixels[pixels[:, 3] > 9]
    assert numpy.abs(seen[:, 0] - seen[:, 1]).max() < 40  # the red of what can't be seen does not shine through


def test_two_pictures_of_one_name_stay_two(studio: Studio, dataset: Dataset, make: Callable[..., Dataset]) -> None:
    put(dataset, "cup.jpg", photo("moon.png").resize((64, 64)), None, format="JPEG")
    new = make(format="png")
    assert {"cup.png", "cup-2.png"} <= set(new.pictures()) and set(new.captions()) >= {"cup.png", "cup-2.png"}


def test_broken_pictures_are_left_out_and_told(studio: Studio, dataset: Dataset) -> None:
    (dataset.path / "cut.png").write_bytes((dataset.path / "cup.png").read_bytes()[:900])
    (dataset.path / "bare.txt").write_bytes("Zürich".encode("cp1252"))
    control = TaskControl()
    told = prepare_dataset(studio, dataset, "new", PrepareOptions(crop="square"), CONFIG, control=control)
    assert told == "new is made: 4 pictures from mine. 1 left out."
    assert [name for name, _ in control._skipped] == ["bare.webp", "cut.png"]
    assert "bare.webp" in studio.open("new").pictures()


@pytest.mark.parametrize("at", [0, 3])
def test_a_cancelled_one_leaves_nothing(studio: Studio, dataset: Dataset, at: int) -> None:
    class Cancels(TaskControl):
        def progress(self, done: int, total: int, text: str = "") -> None:
            assert total == 4
            if done == at:
                self.cancel()

    with pytest.raises(Cancelled):
        prepare_dataset(studio, dataset, "new", PrepareOptions(crop="square"), CONFIG, control=Cancels())
    assert [info.name for info in studio.datasets()] == ["ink", "ink_heldout", "mine"]
    assert not list((studio.workspace.cache_dir / "studio").iterdir())


def test_a_refused_one_leaves_nothing(studio: Studio, dataset: Dataset) -> None:
    for name, options, words in (
        ("mine", {"crop": "square"}, "already"), ("ink", {"crop": "square"}, "already"), ("new", {}, "Nothing is chosen"),
        ("a/b", {"crop": "square"}, "name"), ("new", {"crop": "square", "upscaler": "none"}, "no upscaler 'none'"),
    ):  # fmt: skip
        with pytest.raises(SafelightError, match=words):
            prepare_dataset(studio, dataset, name, prepare_options(options), CONFIG)
    with pytest.raises(SafelightError, match="None of the 1 pictures"):
        (dataset.path / "bad.png").write_bytes((dataset.path / "cup.png").read_bytes()[:900])
        prepare_dataset(studio, dataset, "new", PrepareOptions(crop="square"), CONFIG, names=["bad.png"])
    assert [info.name for info in studio.datasets()] == ["ink", "ink_heldout", "mine"]
    assert not list((studio.workspace.cache_dir / "studio").iterdir())
    with pytest.raises(RefusedConfig, match=r"longest_side is '-1'.*background is 'red': a colour is #"):
        prepare_options({"background": "red", "longest_side": "-1"})
    with pytest.raises(RefusedConfig, match="shortest_side is 600 but longest_side is 300"):
        prepare_options({"shortest_side": 600, "longest_side": 300})
    assert prepare_options({"shortest_side": 300, "longest_side": 300}).longest_side == 300


def test_crops_of_a_model_that_is_not_there_are_told(studio: Studio, dataset: Dataset) -> None:
    options = prepare_options({"crop": "training"})
    assert "usual model" not in prepare_dataset(studio, dataset, "new", options, CONFIG)
    elsewhere = TrainConfig.model_validate({"model": {"base": "nobody"}})
    told = prepare_dataset(studio, dataset, "other", options, elsewhere)
    assert "no model 'nobody'" in told and told.endswith("The crops are those of a usual model.")


def network(path: Path, factor: int = 2, *, side: int | str = "side", channels: int = 3, reach: int = 0) -> Path:
    """A network that enlarges by repeating pixels; with `reach`, means of the pixels so far around."""
    size = 2 * reach + 1
    weights = numpy.zeros((channels * factor * factor, 3, size, size), numpy.float32)
    for row in range(channels * factor * factor):
        weights[row, row // (factor * factor)] = 1 / size**2
    nodes = [
        helper.make_node("Conv", ["pictures", "w"], ["deep"], pads=[reach] * 4),
        helper.make_node("DepthToSpace", ["deep"], ["large"], blocksize=factor, mode="CRD"),
    ]
    shape = ["batch", 3, side, side if isinstance(side, int) else "width"]
    graph = helper.make_graph(
        nodes,
        "upscaler",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("large", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_network_enlarges_small_pictures(studio: Studio, dataset: Dataset, make: Callable[..., Dataset]) -> None:
    network(studio.workspace.path / "upscalers" / "twice.onnx")
    assert list_upscalers(studio.workspace) == ["twice"]
    new = make("cup.png", "clear.png", shortest_side=400, upscaler="twice")
    old, large = image_of(dataset, "cup.png"), image_of(new, "cup.png")
    assert same(large, old.resize((600, 400), Image.Resampling.NEAREST))  # without seams between its tiles
    assert image_of(new, "clear.png").size == (400, 400) and image_of(new, "clear.png").getpixel((50, 200))[3] == 0


@pytest.mark.parametrize("side", ["side", 64])
def test_pictures_of_any_size_go_through_tiles(studio: Studio, side: int | str) -> None:
    network(studio.workspace.path / "upscalers" / "net.onnx", 4, side=side)
    upscaler = open_upscaler(studio.workspace, "net")
    for size in ((1, 1), (33, 700), (193, 192)):
        image = photo("astronaut.png").resize(size)
        assert same(
            upscaler(image, (size[0] * 4, size[1] * 4)),
            image.resize((size[0] * 4, size[1] * 4), Image.Resampling.NEAREST),
        )
    upscaler.close()


def test_tiles_have_no_seams(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that looks at the pixels around gives the same in tiles as at once."""
    network(studio.workspace.path / "upscalers" / "net.onnx", reach=3)
    upscaler = open_upscaler(studio.workspace, "net")
    image = photo("astronaut.png").resize((300, 230))
    tiled = upscaler(image, (600, 460))
    monkeypatch.setattr(upscaling, "TILE", 400)
    assert same(tiled, upscaler(image, (600, 460)))
    upscaler.close()


def test_networks_that_cannot_enlarge_are_refused(studio: Studio) -> None:
    folder = studio.workspace.path / "upscalers"
    network(folder / "once.onnx", 1)
    network(folder / "grey.onnx", 2, channels=1)
    (folder / "text.onnx").write_bytes(b"no network")
    for name in ("once", "grey", "text"):
        with pytest.raises(RefusedFile):
            open_upscaler(studio.workspace, name)
    with pytest.raises(SafelightError, match="There are: grey, once, text"):
        open_upscaler(studio.workspace, "../../etc")
