"""Keeps the shape of the code: layers, banned calls, broad excepts, sizes. Works on syntax trees, on whatever is there.

Every rule is a function from a file to its faults; each is also shown a piece of bad code, so that a rule that has
stopped seeing anything fails as well.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("launch", "ui", "trainer", "security")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 500, 80, 8

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
USES_TORCH = ("security/convert_child.py",)
"""The rest of security/ knows nothing of training; the child that converts checkpoints loads tensors, inside functions."""
LIGHT_MODULES = (
    *("launch", "ui.*", "security.*", "trainer.config.*", "trainer.events", "trainer.jobs", "trainer.runs"),
    *("trainer.workspace", "trainer.logs", "trainer.demo", "trainer.families", "trainer.models.library"),
    *("trainer.dataset.scan", "trainer.dataset.captions", "trainer.dataset.buckets", "trainer.dataset.plan"),
    *("trainer.dataset.studio", "trainer.dataset.history*", "trainer.dataset.settings", "trainer.tasks"),
    *("trainer.dataset.facts", "trainer.dataset.thumbnails", "trainer.dataset.importing"),
)
"""Modules that draw the page or list things: importing them must not import torch."""

# What only some files may do, each with the reason why just these.
BANNED_IMPORTS: dict[str, tuple[str, ...]] = {
    "pickle": (),
    "marshal": (),
    "shelve": (),
    "dill": (),
    "subprocess": ("security/processes.py", "launch.py"),  # one place for children; the door makes the environment
    "requests": ("security/*",),
    "httpx": ("security/*",),
    "aiohttp": ("security/*",),
    "urllib.request": ("security/*",),
    "urllib3": ("security/*",),
    "http.client": ("security/*",),
    "ftplib": (),
    "socket": ("security/*", "ui/server.py"),  # the server looks whether its port is free
    "gradio": ("ui/*",),
    "ctypes": ("security/*",),
    "onnxruntime": ("trainer/tagging/onnx_session.py",),  # which keeps it from reporting what is opened
}
BANNED_CALLS: dict[str, tuple[str, ...]] = {
    "eval": (),
    "exec": (),
    "compile": (),
    "__import__": (),
    "torch.load": ("security/convert_child.py",),  # confined, weights_only, on bytes that were checked
    "yaml.load": (),
    "os.system": (),
    "os.popen": (),
    "os.execve": ("launch.py",),  # so that signals reach the program once
    "os.execv": (),
    "os.fork": (),
    "tempfile.mktemp": (),
    "print": ("ui/cli*.py", "ui/server.py", "trainer/demo/build*.py"),  # they talk to the person at the terminal
}
BANNED_KEYWORDS: dict[str, object] = {"shell": True, "verify": False, "weights_only": False, "trust_remote_code": True}
BROAD_EXCEPTS = {
    ("trainer/jobs.py", "_run"),
    ("trainer/worker.py", "_run"),
    ("trainer/tasks.py", "_run"),
    ("trainer/preflight/check_run.py", "_work"),
    ("ui/messages.py", "known_errors"),
}
"""The last lines of the threads of jobs and tasks, of workers, and the page's boundary; all report what they caught."""
BROAD_EXCEPTS_OF_SCRIPTS = {("trainer/demo/build_data.py", "render_all")}
"""Not run by the product: the SVG renderer's panic is a BaseException without a name of its own."""
HOSTS: dict[str, tuple[str, ...]] = {
    "download.pytorch.org": ("launch.py",),  # torch builds that the default index does not have
    "github.com": ("trainer/metadata.py",),  # written into LoRA files as modelspec wants it, never opened
}


@functools.cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


@dataclass(frozen=True)
class Source:
    """One file of the product, `name` relative to the repository with forward slashes."""

    name: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return parsed(self.text)

    @property
    def module(self) -> str:
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def layer(self) -> str:
        return self.module.split(".")[0]


def product_files() -> list[Source]:
    paths = [ROOT / "launch.py", *(path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py")))]
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def files_of_the_tests() -> list[Source]:
    paths = sorted((ROOT / "tests").rglob("*.py"))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


PRODUCT = product_files()
EVERYTHING = PRODUCT + files_of_the_tests()


def allowed(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names if node.module)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


# The rules


def layer_faults(source: Source) -> Iterator[str]:
    """Imports go launch -> ui -> trainer -> security only."""
    below = LAYERS[LAYERS.index(source.layer) :]
    for line, name in imports(source.tree):
        target = name.split(".")[0]
        if name.startswith("."):
            yield f"{source.name}:{line} imports relatively; write the whole name"
        elif target == "tests" or (target in LAYERS and (target not in below or target == "launch")):
            yield f"{source.name}:{line} {source.layer} may not import {name}"


def door_faults(source: Source) -> Iterator[str]:
    """launch.py needs the standard library only, until it hands over."""
    if source.name != "launch.py":
        return
    for line, name in imports(source.tree):
        if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("ui.cli"):
            yield f"launch.py:{line} imports {name}, which is not in the standard library"


def banned_import_faults(source: Source) -> Iterator[str]:
    """Dangerous and network modules stay where they are guarded; torch stays out of security and ui."""
    for line, name in imports(source.tree):
        for banned, places in BANNED_IMPORTS.items():
            if (name == banned or name.startswith(banned + ".")) and not allowed(source.name, places):
                yield f"{source.name}:{line} imports {name}; allowed in: {places or 'no file'}"
        if name.split(".")[0] in HEAVY and source.layer == "security" and source.name not in USES_TORCH:
            yield f"{source.name}:{line} imports {name}; security knows nothing of training"


def banned_call_faults(source: Source) -> Iterator[str]:
    """Calls that run code, shells or pickles."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in BANNED_CALLS and not allowed(source.name, BANNED_CALLS[name]):
            yield f"{source.name}:{node.lineno} calls {name}"
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg in BANNED_KEYWORDS and value is BANNED_KEYWORDS[keyword.arg]:
                yield f"{source.name}:{node.lineno} passes {keyword.arg}={value}"


def broad_excepts(source: Source) -> Iterator[tuple[str, str, int]]:
    """(file, function, line) of handlers that catch everything and do not raise it again."""
    for function in functions(source.tree):
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                ends_in_raise = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
                if re.search(r"\b(everything|Exception|BaseException)\b", caught) and not ends_in_raise:
                    yield source.name, function.name, node.lineno
            elif isinstance(node, ast.Call) and dotted(node.func).endswith("suppress"):
                caught = " ".join(dotted(argument) for argument in node.args)
                if re.search(r"\b(Exception|BaseException)\b", caught):
                    yield source.name, function.name, node.lineno


def broad_except_faults(source: Source) -> Iterator[str]:
    """Two places catch everything, and both report it."""
    for name, function, line in broad_excepts(source):
        if (name, function) not in BROAD_EXCEPTS | BROAD_EXCEPTS_OF_SCRIPTS:
            yield f"{name}:{line} {function} catches everything"


def size_faults(source: Source) -> Iterator[str]:
    """Files, functions and parameter lists that a person can take in."""
    lines = source.text.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{source.name} has {lines} lines"
    for function in functions(source.tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > MAX_FUNCTION_LINES:
            yield f"{source.name}:{function.lineno} {function.name} has {length} lines"
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in arguments)
        if count > MAX_PARAMETERS:
            yield f"{source.name}:{function.lineno} {function.name} has {count} parameters"


def address_faults(source: Source) -> Iterator[str]:
    """No outside address in the code but those of security/policy.py and the listed ones."""
    tree = source.tree
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # these may cite a source
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)) or id(node) in docstrings:
            continue
        if source.layer == "security":
            continue
        for host in re.findall(r"(?:https?|wss?|ftp)://([A-Za-z0-9.-]*[A-Za-z0-9])", node.value):
            if host not in ("127.0.0.1", "localhost", "www.w3.org") and not allowed(source.name, HOSTS.get(host, ())):
                yield f"{source.name}:{node.lineno} names the host {host}"


def docstring_faults(source: Source) -> Iterator[str]:
    """Every module says what it is for."""
    if not ast.get_docstring(source.tree):
        yield f"{source.name} has no docstring"


def annotation_faults(source: Source) -> Iterator[str]:
    """Every signature is typed."""
    for function in functions(source.tree):
        everything = function.args
        arguments = [*everything.posonlyargs, *everything.args, *everything.kwonlyargs]
        arguments += [extra for extra in (everything.vararg, everything.kwarg) if extra]
        bare = [one.arg for one in arguments if one.annotation is None and one.arg not in ("self", "cls")]
        if bare or function.returns is None:
            missing = ", ".join(bare) or "its result"
            yield f"{source.name}:{function.lineno} {function.name} does not say the type of {missing}"


Rule = Callable[[Source], Iterator[str]]
PRODUCT_RULES: list[Rule] = [
    *(layer_faults, door_faults, banned_import_faults, banned_call_faults, broad_except_faults, size_faults),
    *(address_faults, docstring_faults, annotation_faults),
]


@pytest.mark.parametrize("rule", PRODUCT_RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    files = EVERYTHING if rule in (size_faults, docstring_faults) else PRODUCT
    files = [source for source in files if source.text.strip() or not source.name.endswith("__init__.py")]
    faults = [fault for source in files for fault in rule(source)]
    assert not faults, f"{rule.__doc__}\n" + "\n".join(faults)


BAD_CODE: list[tuple[Rule, str, str]] = [
    (layer_faults, "trainer/bad.py", "from ui.app import build_app"),
    (layer_faults, "security/bad.py", "def f():\n    import trainer.jobs"),
    (layer_faults, "ui/bad.py", "import launch"),
    (layer_faults, "ui/bad.py", "from . import app"),
    (layer_faults, "trainer/bad.py", "from tests.tiny import tiny_sd15"),
    (door_faults, "launch.py", "import requests"),
    (banned_import_faults, "trainer/bad.py", "import gradio as gr"),
    (banned_import_faults, "trainer/bad.py", "def f():\n    from urllib.request import urlopen"),
    (banned_import_faults, "ui/bad.py", "from subprocess import run"),
    (banned_import_faults, "security/bad.py", "import torch.nn"),
    (banned_import_faults, "trainer/bad.py", "import pickle"),
    (banned_call_faults, "trainer/bad.py", "torch.load('x')"),
    (banned_call_faults, "security/bad.py", "eval('1')"),
    (banned_call_faults, "security/processes.py", "subprocess.run('x', shell=True)"),
    (banned_call_faults, "security/bad.py", "get('x', verify=False)"),
    (banned_call_faults, "trainer/bad.py", "load('x', trust_remote_code=True)"),
    (banned_call_faults, "trainer/bad.py", "print('x')"),
    (broad_except_faults, "ui/bad.py", "def f():\n    try:\n        g()\n    except Exception:\n        pass"),
    (
        broad_except_faults,
        "ui/bad.py",
        "def f():\n    try:\n        g()\n    except (ValueError, BaseException):\n        g()",
    ),
    (broad_except_faults, "ui/bad.py", "def f():\n    try:\n        g()\n    except:\n        return 1"),
    (broad_except_faults, "ui/bad.py", "def f():\n    with contextlib.suppress(Exception):\n        g()"),
    (size_faults, "ui/bad.py", "x = 1\n" * 501),
    (size_faults, "ui/bad.py", "def f():\n" + "    x = 1\n" * 80),
    (size_faults, "ui/bad.py", "def f(a, b, c, d, *, e, f, g, h, i): ..."),
    (address_faults, "ui/bad.py", "x = 'see https://example.org/page'"),
    (address_faults, "ui/bad.py", "x = f'https://download.pytorch.org/{y}'"),
    (docstring_faults, "ui/bad.py", "x = 1"),
    (annotation_faults, "ui/bad.py", "def f(a) -> None: ..."),
    (annotation_faults, "ui/bad.py", "def f(a: int): ..."),
]


@pytest.mark.parametrize(("rule", "name", "code"), BAD_CODE, ids=lambda value: getattr(value, "__name__", None))
def test_rule_sees_bad_code(rule: Rule, name: str, code: str) -> None:
    assert list(rule(Source(name, code)))


def test_rules_accept_good_code() -> None:
    code = (
        '"""Doc."""\n\ndef f(a: int) -> int:\n    try:\n        return g(a)\n    except BaseException:\n        raise\n'
    )
    faults = [fault for rule in PRODUCT_RULES for fault in rule(Source("ui/good.py", code))]
    assert not faults


def test_there_is_code_to_look_at() -> None:
    assert {source.layer for source in PRODUCT} == set(LAYERS)
    assert len(PRODUCT) > 40


def test_broad_excepts_are_where_the_list_says() -> None:
    """A place that no longer catches everything must leave the list, or the list would shelter the next one."""
    found = {(name, function) for source in PRODUCT for name, function, _ in broad_excepts(source)}
    assert found == BROAD_EXCEPTS | BROAD_EXCEPTS_OF_SCRIPTS


def light_modules() -> list[str]:
    modules = [source.module for source in PRODUCT]
    return [module for module in modules if any(fnmatch(module, pattern) for pattern in LIGHT_MODULES)]


@pytest.fixture(scope="module")
def modules_after_importing_the_page() -> set[str]:
    """Everything that a fresh Python has loaded once all modules of the page are imported."""
    code = f"import importlib, sys\nfor name in {light_modules()!r}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_page_imports_no_torch(modules_after_importing_the_page: set[str]) -> None:
    """The page must be up in seconds: torch and its company are imported when a job starts."""
    assert {"ui.app", "ui.cli", "trainer.jobs", "security.web"} <= modules_after_importing_the_page
    assert not HEAVY & modules_after_importing_the_page


DISTRIBUTIONS = {
    "PIL": "pillow",
    "annotated_types": "annotated-types",
    "cyclonedx": "cyclonedx-python-lib",
    "huggingface_hub": "huggingface_hub",
    "packageurl": "packageurl-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "xdist": "pytest-xdist",
    "yaml": "pyyaml",
}


def third_party(sources: list[Source]) -> set[str]:
    """Names, as in requirements files, of the packages that these files import."""
    names = {name.split(".")[0] for source in sources for _, name in imports(source.tree)}
    outside = names - set(sys.stdlib_module_names) - {*LAYERS, "tests", "benchmarks", ""}
    return {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in outside}


def required(text: str) -> set[str]:
    return {name.lower().replace("_", "-") for name in re.findall(r"^([A-Za-z0-9_.-]+)==", text, re.MULTILINE)}


def test_imported_packages_are_required() -> None:
    """What the code imports stands in the first part of requirements.txt, not among what that part happens to bring."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    roots, brought = text.split("# What those bring")
    scripts = [source for source in PRODUCT if not fnmatch(source.name, "trainer/demo/build*.py")]
    assert third_party(scripts) <= required(roots)
    tests = required((ROOT / "requirements-test.txt").read_text(encoding="utf-8"))
    assert third_party(EVERYTHING) - third_party(PRODUCT) <= required(roots) | required(brought) | tests


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt", "security/requirements-cu126.txt"])
def test_every_requirement_is_exact(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        wanted = r"[A-Za-z0-9_.-]+==[\w.]+( ; [\w. <>='\"]+)?( +--hash=sha256:[0-9a-f]{64})+"
        assert not line or line.startswith("#") or re.fullmatch(wanted, line), line


def test_strictly_typed_parts_are_in_the_mypy_settings() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    wanted = {"trainer/config", "trainer/events.py", "trainer/jobs.py", "trainer/runs.py", "security"}
    assert settings["strict"] and wanted <= set(settings["files"])


def test_workflow_is_pinned_and_can_only_read() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE), (
            f"{path.name} asks for more than reading"
        )
        assert "pull_request_target" not in text and ": write" not in text
        uses = re.findall(r"uses: (\S+)", text)
        assert uses and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", use) for use in uses), f"{path.name}: {uses}"
