"""The Tools tab, called as its script does: files and models by their names only, every tool, refusals in words."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from security.weights import check_safetensors
from tests import tiny
from tests.trainer.test_lora_made import layers, write
from tests.ui.test_import_panel import send
from tests.ui.test_tabs import drawn
from trainer.lora_files.reading import read_lora
from trainer.models.library import import_model
from trainer.tasks import TaskView
from ui.downloads import routes
from ui.messages import answered
from ui.services import Services
from ui.strip import status_strip
from ui.tabs import tools
from ui.tabs.tools import MAX_RESULTS, ToolDesk
from ui.tool_forms import TOOLS


@pytest.fixture(autouse=True)
def no_served_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)


def desk_of(services: Services) -> Any:
    """The functions as the page's script reaches them: errors are answers."""
    return SimpleNamespace(**{one.__name__: answered(one) for one in ToolDesk(services).functions()})


@pytest.fixture
def desk(services: Services) -> Any:
    write(services.workspace.loras_dir / "one.safetensors", layers(6), words="mira")
    write(services.workspace.loras_dir / "two.safetensors", layers(4, seed=50))
    (services.workspace.runs_dir / "mira").mkdir()
    write(services.workspace.runs_dir / "mira" / "mira.safetensors", layers(2))
    return desk_of(services)


def over(services: Services, answer: dict[str, Any]) -> TaskView:
    assert "error" not in answer, answer
    assert services.studio.tasks.wait(60)
    return services.studio.tasks.get(answer["task"])


KEEP: dict[str, Any] = {"keep": "rank", "amount": None}
FORM: dict[str, Any] = {"format": "", "precision": ""}
VALUES: dict[str, dict[str, Any]] = {
    "verify": {"lora": "one", "base": ""},
    "edit": {"lora": "one", "title": "Mira", "remove": "captions", "entries": "ss_network_dim", "name": "new"},
    "resize": {"lora": "mira/mira", "rank": 1, "conv_rank": 1, **KEEP, "base": "", **FORM, "name": "new"},
    "merge": {"loras": [{"name": "one", "weight": 0.5}, {"name": "two", "weight": -1}], "rank": None, "conv_rank": None,
              **KEEP, "base": "", **FORM, "name": "new"},
    "bake": {"base": "small", "loras": [{"name": "one", "weight": 1}], "name": "new"},
    "extract": {"tuned": "small", "base": "other", "rank": 4, "conv_rank": 4, **KEEP, "text_encoders": True,
                "precision": "fp16", "name": "new"},
    "convert": {"lora": "one", "format": "diffusers", "precision": "fp16", "as_lora": None, "base": "", "name": "new"},
}  # fmt: skip


@pytest.fixture
def models(services: Services, tmp_path: Path) -> None:
    for seed, name in enumerate(("small", "other")):
        import_model(services.workspace, tiny.tiny_sd15(tmp_path / name, seed=seed), name)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_makes_what_it_says(desk: Any, models: None, services: Services, tool: str) -> None:
    view = over(services, desk.tool_start({"tool": tool, "values": VALUES[tool]}))
    assert view.state == "done" and (view.kind, view.dataset) == ("lora", ""), view.message
    (task,) = desk.tools_state()["tasks"]
    report = desk.tool_report({"id": task["id"]})
    if tool == "verify":
        assert report["ok"] and dict(report["facts"])["rank"] == "6" and len(report["layers"]) == 3
        assert not task["result"]
    elif tool == "bake":
        assert "new" in desk.tools_state()["models"] and task["result"] == {"name": "new", "url": ""}
    else:
        path = services.workspace.loras_dir / "new.safetensors"
        assert read_lora(path, "sd15").layers and task["result"] == {
            "name": "new",
            "url": "safelight/loras/new.safetensors",
        }
        assert desk.tools_state()["loras"][0]["name"] == "new"
    if tool == "edit":
        metadata = check_safetensors(services.workspace.loras_dir / "new.safetensors").metadata
        assert metadata["modelspec.title"] == "Mira" and "ss_network_dim" not in metadata
        assert metadata["modelspec.trigger_phrase"] == "mira"  # what the form did not send stays
    if tool in ("resize", "merge", "extract"):
        assert report["head"][-1] == "Energy kept" and report["layers"][0][-1].endswith("%") and report["loads"]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("resize", {"lora": "../one"}, "There is no LoRA '../one'"),
    ("resize", {"lora": "/etc/passwd"}, "There is no LoRA"),
    ("resize", {"lora": ""}, "LoRA: choose or type one first"),
    ("resize", {"rank": None}, "type a whole number"),
    ("resize", {"rank": 2.5}, "2.5 is no rank"),
    ("resize", {"rank": 0}, "0 is no rank"),
    ("resize", {"rank": "4"}, "Rank: type a number"),
    ("resize", {"rank": True}, "Rank: type a number"),
    ("resize", {"keep": "energy"}, "type how much to keep"),
    ("resize", {"keep": "energy", "amount": 3}, "energy to keep is 3"),
    ("resize", {"keep": "ratio", "amount": 0}, "ratio is 0"),
    ("resize", {"keep": "all"}, "'all' is no choice"),
    ("resize", {"format": "onnx"}, "'onnx' is no choice"),
    ("resize", {"base": "nothing"}, "no model 'nothing' in the library"),
    ("resize", {"base": "/etc"}, "no model '/etc' in the library"),
    ("resize", {"name": "one"}, "a LoRA named one already"),
    ("resize", {"name": "../../up"}, "cannot be used"),
    ("resize", {"name": 7}, "no text"),
    ("merge", {"loras": "x"}, "choose two or more"),
    ("merge", {"loras": [{"name": "one", "weight": None}]}, "type a number as the weight of one"),
    ("merge", {"loras": [{"name": "one", "weight": 0}]}, "The weight of one is 0"),
    ("merge", {"conv_rank": 4}, "Rank: type one"),
    ("bake", {"base": "small/../other"}, "no model"),
    ("bake", {"loras": []}, "choose one or more"),
    ("bake", {"loras": [{"name": "one", "weight": 1e9}]}, "Give a number from -10 to 10 other than 0"),
    ("bake", {"name": "small"}, "a model named small already"),
    ("extract", {"tuned": str(Path.home())}, "no model"),
    ("edit", {"lora": "mira/mira", "in_place": True}, "belongs to a run"),
    ("edit", {"remove": "everything"}, "is no choice"),
]


@pytest.mark.parametrize(("tool", "changes", "words"), REFUSED)
def test_mistakes_are_told_before_anything_waits(
    desk: Any, services: Services, tool: str, changes: dict[str, Any], words: str
) -> None:
    services.library.models()
    (services.workspace.models_dir / "small").mkdir()  # a name is enough: nothing of it is read yet
    services.library.forget()
    answer = desk.tool_start({"tool": tool, "values": {**VALUES[tool], **changes}})
    assert words in answer["error"] and desk.tools_state()["tasks"] == []


@pytest.mark.parametrize(
    "argument", [None, 7, {}, {"tool": "rm"}, {"tool": "resize"}, {"tool": "resize", "values": []}]
)
def test_nonsense_from_a_browser_is_told(desk: Any, argument: Any) -> None:
    assert "Reload the page" in desk.tool_start(argument)["error"]


def test_faults_of_the_work_are_told(desk: Any, services: Services) -> None:
    view = over(
        services, desk.tool_start({"tool": "resize", "values": {**VALUES["resize"], "rank": 64, "conv_rank": 64}})
    )
    assert view.state == "failed" and "nothing to make smaller" in view.message
    (task,) = desk.tools_state()["tasks"]
    assert task["report"] is False and "not kept" in desk.tool_report({"id": task["id"]})["error"]
    desk.tool_task({"id": task["id"], "action": "dismiss"})
    assert desk.tools_state()["tasks"] == []


def test_all_that_is_over_is_put_away_at_once(desk: Any, services: Services) -> None:
    going = threading.Event()
    for lora in ("one", "two"):
        over(services, desk.tool_start({"tool": "verify", "values": {"lora": lora, "base": ""}}))
    other = services.studio.tasks.start("import", "Import", "x", lambda control: "done")
    services.studio.tasks.wait(10)
    services.studio.tasks.start("lora", "Slow", "", lambda control: str(going.wait(30)))
    assert desk.tool_task({"action": "dismiss_all"}) == {}
    assert [task["title"] for task in desk.tools_state()["tasks"]] == ["Slow"]
    assert services.studio.tasks.get(other).state == "done"
    going.set()
    services.studio.tasks.wait(10)


def test_work_is_cancelled_and_shown_in_the_strip(
    desk: Any, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, goes_on = threading.Event(), threading.Event()
    real = tools.ToolDesk.optional_model

    def slow(self: ToolDesk, name: str) -> Path | None:
        began.set()
        goes_on.wait(30)
        return real(self, name)

    monkeypatch.setattr(tools.ToolDesk, "optional_model", slow)
    answer = desk.tool_start({"tool": "resize", "values": VALUES["resize"]})
    assert began.wait(30)
    strip = drawn(status_strip, services)
    shown = strip.strip_state(None)
    assert (shown["word"], shown["name"], shown["tab"]) == ("Making", "Resize mira/mira", "tools")
    assert "Nothing is left" in strip.strip_action({"action": "cancel_task", "task": answer["task"]})["text"]
    desk.tool_task({"id": answer["task"], "action": "cancel"})
    goes_on.set()
    assert over(services, answer).state == "cancelled"
    assert not (services.workspace.loras_dir / "new.safetensors").exists()


def test_tasks_of_datasets_are_left_alone(desk: Any, services: Services) -> None:
    other = services.studio.tasks.start("import", "Import", "x", lambda control: "done")
    services.studio.tasks.wait(10)
    assert desk.tools_state()["tasks"] == []
    assert "can't be done" in desk.tool_task({"id": other, "action": "dismiss"})["error"]


def test_look_gives_the_texts_to_edit(desk: Any) -> None:
    found = desk.lora_look({"name": "one"})
    assert found["texts"]["trigger_words"] == "mira" and found["metadata"]["ss_network_dim"] == "9"
    assert dict(found["facts"])["kind"] == "lora, locon" and found["programs"]
    assert "There is no LoRA" in desk.lora_look({"name": "../one"})["error"]


def test_files_come_from_the_browser_and_from_this_machine(desk: Any, services: Services, tmp_path: Path) -> None:
    data = (services.workspace.loras_dir / "one.safetensors").read_bytes()
    send(services, "u1", **{"0__new_dot_safetensors": data})
    assert desk.lora_sent({"upload": "u1"}) == {"text": "new is here.", "names": ["new"]}
    send(services, "u2", **{"0__bad_dot_safetensors": b"\x80\x02}q\x00."})
    assert "a Python pickle" in desk.lora_sent({"upload": "u2"})["error"]
    assert "not here any more" in desk.lora_sent({"upload": "u2"})["error"]
    path = tmp_path / "far.safetensors"
    path.write_bytes(data)
    assert desk.lora_path({"path": str(path)})["names"] == ["far"]
    assert desk.lora_remove({"name": "far"}) == {"text": "far is deleted."} and path.exists()
    assert "belongs to the run" in desk.lora_remove({"name": "mira/mira"})["error"]


def test_visitors_name_no_paths(shared_services: Services, tmp_path: Path) -> None:
    """On a page that others can reach, paths lead into the import folder only, and models are names of the library."""
    desk = desk_of(shared_services)
    inside = shared_services.workspace.path / "import" / "mine.safetensors"
    outside = write(tmp_path / "secret.safetensors", layers(2)).path
    inside.write_bytes(outside.read_bytes())
    assert "not inside the folder import" in desk.lora_path({"path": str(outside)})["error"]
    link = shared_services.workspace.path / "import" / "link.safetensors"
    link.symlink_to(outside)
    assert "not inside the folder import" in desk.lora_path({"path": str(link)})["error"]
    assert desk.lora_path({"path": str(inside)})["names"] == ["mine"]
    folder = tiny.tiny_sd15(tmp_path / "model")
    for tool, field in (("verify", "base"), ("bake", "base"), ("extract", "tuned")):
        answer = desk.tool_start(
            {"tool": tool, "values": {**VALUES[tool], "lora": "mine", "loras": [], field: str(folder)}}
        )
        assert "no model" in answer["error"], tool
    assert "import" in desk.tool_forms()["where"]
    shared_services.studio.tasks.wait(5)


def test_results_are_downloaded_and_nothing_else(desk: Any, services: Services) -> None:
    client = TestClient(Starlette(routes=routes(services)))
    answer = client.get("/safelight/loras/one.safetensors")
    assert answer.status_code == 200 and answer.headers["content-disposition"].startswith("attachment")
    assert answer.content == (services.workspace.loras_dir / "one.safetensors").read_bytes()
    (services.workspace.loras_dir / "notes.txt").write_text("x")
    (services.workspace.loras_dir / "link.safetensors").symlink_to(
        services.workspace.runs_dir / "mira" / "mira.safetensors"
    )
    for name in ("none.safetensors", "notes.txt", "link.safetensors", "..%2fruns%2fmira%2fmira.safetensors", "%2e%2e"):
        assert client.get(f"/safelight/loras/{name}").status_code == 404, name
    assert all(one["url"].startswith("safelight/") for one in desk.tools_state()["loras"])


def test_reports_do_not_pile_up(desk: Any, services: Services) -> None:
    own = ToolDesk(services)
    for number in range(MAX_RESULTS + 5):
        own._keep(str(number), {"notes": []})
    assert "not kept" in answered(own.tool_report)({"id": "4"})["error"]
    assert answered(own.tool_report)({"id": "5"}) == {"notes": []}
