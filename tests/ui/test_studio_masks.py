"""The functions behind the Masks panel and the painting: what the scripts ask, get, and may not do."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from security.errors import SafelightError
from trainer.tagging.cutouts import cutouts
from trainer.tasks import TaskState
from ui.services import Services
from ui.studio.masks import MASKS_PANEL

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(services: Services) -> Ask:
    """Calls a function of the panel as its script does, for a dataset with a transparent and an opaque picture."""
    dataset = services.studio.create("mira")
    half = Image.new("RGBA", (60, 40), (200, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 30, 40))
    half.save(dataset.path / "cut.png")
    Image.new("RGB", (3000, 1500)).save(dataset.path / "large.png")
    functions = {function.__name__: function for function in MASKS_PANEL.functions(services)}

    def call(function: str, /, **argument: Any) -> dict[str, Any]:
        return functions[function]({"dataset": "mira", **argument})

    return call


def sent(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def received(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def wait(services: Services, task: str) -> str:
    services.studio.tasks.wait(30)
    view = services.studio.tasks.get(task)
    assert view.state is TaskState.DONE, view.message
    return view.message


def test_a_painted_mask_comes_back_at_a_size_to_paint_on(ask: Ask, services: Services) -> None:
    assert ask("get_mask", picture="large.png") == {"png": ""}
    painted = Image.new("RGBA", (1024, 512), (255, 255, 255, 255))
    painted.paste((0, 0, 0, 255), (0, 0, 512, 512))
    answer = ask("save_mask", picture="large.png", png=sent(painted))
    assert answer["mask"] is True
    assert answer["revision"] > answer["before_revision"]
    back = received(ask("get_mask", picture="large.png")["png"])
    assert (back.mode, back.size) == ("L", (1024, 512))
    assert (back.getpixel((10, 10)), back.getpixel((1000, 10))) == (0, 255)
    assert ask("save_mask", picture="large.png", png=None)["mask"] is False
    assert services.studio.open("mira").masks() == set()


def test_masks_are_made_inverted_and_removed(ask: Ask, services: Services) -> None:
    dataset = services.studio.open("mira")
    names = dataset.pictures()
    assert wait(services, ask("make_masks", names=names, source="alpha")["task"]) == "1 mask written."
    assert received(ask("get_mask", picture="cut.png")["png"]).getpixel((5, 5)) == 0
    wait(services, ask("invert", names=names)["task"])
    assert received(ask("get_mask", picture="cut.png")["png"]).getpixel((5, 5)) == 255
    assert ask("remove_masks", names=names)["text"].startswith("1 mask removed")
    assert dataset.masks() == set()
    with pytest.raises(SafelightError, match="None of these"):
        ask("invert", names=names)
    dataset.history.undo()
    assert dataset.masks() == {"cut.png"}


def test_the_networks_and_why_they_cannot_be_used_yet(ask: Ask) -> None:
    networks = ask("mask_networks")["networks"]
    assert [one["name"] for one in networks] == list(cutouts())
    assert not any(one["here"] for one in networks)
    with pytest.raises(SafelightError, match="not on this machine yet"):
        ask("make_masks", names=["cut.png"], source="u2netp")
    with pytest.raises(SafelightError, match="There is no network"):
        ask("make_masks", names=["cut.png"], source="../u2netp")
    with pytest.raises(SafelightError, match="not"):
        ask("remove_network", name="u2netp")


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("save_mask", {"picture": "cut.png", "png": 5}),
        ("save_mask", {"picture": "cut.png", "png": "not base64!"}),
        ("save_mask", {"picture": "cut.png", "png": "AAAA"}),
        ("save_mask", {"picture": "cut.png", "png": "A" * 12_000_000}),
        ("save_mask", {"picture": "../cut.png", "png": None}),
        ("save_mask", {"picture": ".safelight/masks/cut.png.png", "png": None}),
        ("get_mask", {"picture": "../../../etc/passwd"}),
        ("get_mask", {"picture": ".safelight/masks/cut.png.png"}),
        ("make_masks", {"names": "cut.png", "source": "alpha"}),
        ("make_masks", {"names": ["gone.png"], "source": "alpha"}),
        ("make_masks", {"names": ["cut.png"], "source": ["alpha"]}),
        ("remove_masks", {"names": [5]}),
        ("network_action", {"id": "x", "action": "remove"}),
        ("fetch_network", {"name": "nobody"}),
    ],
)
def test_anything_may_come_from_a_browser(ask: Ask, services: Services, name: str, argument: dict[str, Any]) -> None:
    with pytest.raises(SafelightError):
        ask(name, **argument)
    assert services.studio.open("mira").revision == 0


def test_an_embedded_dataset_gets_no_masks(ask: Ask) -> None:
    painted = sent(Image.new("L", (10, 10)))
    for name, argument in (
        ("save_mask", {"picture": "01-rabbit-face.png", "png": painted}),
        ("make_masks", {"names": ["01-rabbit-face.png"], "source": "alpha"}),
    ):
        with pytest.raises(SafelightError, match="can't be changed"):
            ask(name, **{"dataset": "ink", **argument})
