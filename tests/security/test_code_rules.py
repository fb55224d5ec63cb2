"""What the code must not do, read from its syntax trees: plain HTTP, unchecked TLS, shells, installs, loose writes.

Each rule is also shown bad code, so that one that has stopped seeing anything fails as well. (Banned imports and calls
are in tests/test_architecture.py.)
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_architecture import PRODUCT, Rule, Source, allowed, dotted, imports

ROOT = Path(__file__).resolve().parents[2]
BUILD_SCRIPTS = ("trainer/demo/build*.py",)
"""Run by a developer, never by the product."""

LOOPBACK = re.compile(r"http://(?:127\.0\.0\.1|localhost|\[::1\]|\{)")
NAMESPACES = ("http://www.w3.org/",)
"""Names of XML vocabularies, which nothing opens."""

LOOSE_TLS = (
    "CERT_NONE",
    "_create_unverified_context",
    "disable_warnings",
    "PROTOCOL_TLSv1",
    "PROTOCOL_SSLv23",
    "TLSv1",
)
"""Names that turn checks of certificates or modern TLS off."""

DANGEROUS_CALLS = (
    *("os.execl", "os.execle", "os.execlp", "os.execvp", "os.execvpe", "os.spawnl", "os.spawnv", "os.startfile"),
    *("pty.spawn", "asyncio.create_subprocess_shell", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("runpy.run_path", "runpy.run_module", "code.interact", "importlib.util.spec_from_file_location"),
    *(
        "torch.jit.load",
        "torch.package.PackageImporter",
        "torch.export.load",
        "torch.hub.load",
        "numpy.load",
        "np.load",
    ),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader"),
    *("joblib.load", "cloudpickle.loads", "jsonpickle.decode"),
    *("shutil.unpack_archive", "tarfile.open", "zipfile.ZipFile", "os.setuid", "os.seteuid", "os.setgid", "os.chroot"),
    *("os.mkfifo", "os.mknod", "webbrowser.get"),
)
"""Calls that run programs, code or foreign object streams, unpack archives by their own word, or change who one is."""
DANGEROUS_NAMES: dict[str, tuple[str, ...]] = {
    "extractall": (),
    "CDLL": ("security/*",),
    # Each takes its names from a table in the code, never from a foreign file or a person. (The table of taggers is a
    # file of the package; test_tagging.py holds every row to classes of the package, and taggers of users to one class.)
    "import_module": (
        *("trainer/families/__init__.py", "trainer/optimizers.py", "security/confined.py", "security/signing.py"),
        *("security/token_sources.py", "security/worker.py", "trainer/tagging/base.py"),
        "trainer/adapters/table.py",
    ),
}
"""Attributes with the places that may use them."""
DANGEROUS_IMPORTS = (
    "telnetlib",
    "xmlrpc",
    "tarfile",
    "pty",
    "code",
    "runpy",
    "cloudpickle",
    "joblib",
    "yaml",
)
YAML_READER = "security/configs.py"
"""The one module with yaml. It reads nodes by the safe loader and makes plain values of them itself."""
ARCHIVE_WRITER = "security/zip_writer.py"
"""The one module with zipfile. It only writes: what it opens is opened with the mode "w"."""
PROGRAMS = frozenset(
    ["sudo", "su", "doas", "apt", "apt-get", "yum", "dnf", "brew", "git", "curl", "wget", "sh", "bash", "cmd", "cmd.exe",
     "powershell", "pip", "pip3", "uv", "conda", "npm", "huggingface-cli", "hf"]
)  # fmt: skip
"""Programs that fetch, install, run texts or ask for more rights."""
PROGRAM_PLACES: dict[str, tuple[str, ...]] = {
    "uv": ("launch.py",),  # makes the environment, from hashes
    "pip": ("launch.py",),
    "git": ("trainer/*.py", "ui/cli_doctor.py"),  # asks which commit this is; see the rule on cloning
}

WRITERS: dict[str, str] = {
    "launch.py": "its own marker, log and environment, before there is anything to import",
    "trainer/checkpoints.py": "files of a run, in a new folder that a rename puts in place",
    "trainer/runs.py": "the events of a run, appended",
    "trainer/dataset/cache.py": "takes a damaged cache file away",
    "trainer/models/library.py": "copies a checked model into a new folder, that a rename puts in place",
    "trainer/models/converted.py": "copies the settings beside a checkpoint to where it is converted",
    "trainer/models/fetching.py": "the quarantine of a download",
    "trainer/models/provenance.py": "the note beside a model that goes",
    "trainer/lora_files/placing.py": "puts finished LoRA files and models in their places",
    "trainer/dataset/thumbnails.py": "thumbnails in the cache",
    "trainer/dataset/studio.py": "copies a dataset into a new folder, that a rename puts in place; renames datasets",
    "trainer/dataset/prepare.py": "puts a finished dataset in its place",
    "trainer/dataset/export.py": "puts a finished export in its place",
    "trainer/dataset/history.py": "puts a damaged history aside; takes away the lock of an edit that ended",
    "trainer/dataset/history_store.py": "opens a file to wait for the disk, which changes nothing",
}
"""Files outside of security/ that write, move or delete by path, and what. All else goes through `security.roots`."""
_WRITES = frozenset(
    ["write_text", "write_bytes", "unlink", "rmdir", "touch", "symlink_to", "hardlink_to", "chmod", "rmtree", "copyfile",
     "copy", "copy2", "copytree", "move", "truncate"]
)  # fmt: skip
_WRITING_MODULES = ("shutil", "os")


PATH_PLACES = (
    *("security/*", "trainer/workspace.py", "trainer/dataset/scan.py", "ui/cli*.py", "ui/server.py", "launch.py"),
    *BUILD_SCRIPTS,
)
"""Where a typed path may be expanded: those outside of security/ read the command line or the environment."""


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every text in the code that is no docstring."""
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node


def plain_http_faults(source: Source) -> Iterator[str]:
    """Every address begins with https://, but for this machine's own and the names of XML vocabularies."""
    for node in texts(source.tree):
        for found in re.finditer(r"http://[^\s\"']*", str(node.value)):
            address = found.group()
            known = LOOPBACK.match(address) or address.startswith(NAMESPACES)
            if not known and address != "http://":  # alone it is compared with, not opened
                yield f"{source.name}:{node.lineno} has the address {address}"


def tls_faults(source: Source) -> Iterator[str]:
    """Nothing turns the check of certificates or of host names off."""
    for node in ast.walk(source.tree):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in LOOSE_TLS:
            yield f"{source.name}:{node.lineno} uses {name}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is False:
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr in ("check_hostname", "verify"):
                    yield f"{source.name}:{node.lineno} sets {target.attr} to False"
        if isinstance(node, ast.keyword) and node.arg in ("cert_reqs", "assert_hostname") and is_off(node.value):
            yield f"{source.name} passes {node.arg}={ast.unparse(node.value)}"


def is_off(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and (value.value in (False, 0, "NONE", "CERT_NONE"))


def dangerous_call_faults(source: Source) -> Iterator[str]:
    """No call that runs a program, code or objects out of a file, or unpacks an archive by its own word."""
    for line, name in imports(source.tree):
        module = name.split(".")[0]
        is_reader = module == "yaml" and source.name == YAML_READER
        if (module in DANGEROUS_IMPORTS and not is_reader) or (module == "zipfile" and source.name != ARCHIVE_WRITER):
            yield f"{source.name}:{line} imports {name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and dotted(node.func) in DANGEROUS_CALLS and not writes_archive(source, node):
            yield f"{source.name}:{node.lineno} calls {dotted(node.func)}"
        elif isinstance(node, ast.Attribute) and not allowed(source.name, DANGEROUS_NAMES.get(node.attr, ("*",))):
            yield f"{source.name}:{node.lineno} uses {node.attr}"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield f"{source.name} passes allow_pickle"


def writes_archive(source: Source, call: ast.Call) -> bool:
    """Whether a call opens a new archive for writing, in the module that may."""
    mode = call.args[1] if len(call.args) == 2 else None
    is_new = isinstance(mode, ast.Constant) and mode.value == "w" and not call.keywords
    return source.name == ARCHIVE_WRITER and dotted(call.func) == "zipfile.ZipFile" and is_new


def program_faults(source: Source) -> Iterator[str]:
    """No argument list begins with a program that installs, fetches, runs texts or asks for rights; no clone."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.List | ast.Tuple):
            continue
        words = [one.value for one in node.elts if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        first = node.elts[0] if node.elts else None
        program = first.value if isinstance(first, ast.Constant) and is_command(words) else None
        if program in PROGRAMS and not allowed(source.name, PROGRAM_PLACES.get(str(program), ())):
            yield f"{source.name}:{node.lineno} starts {program}"
        if "clone" in words or ("install" in words and source.name != "launch.py"):
            yield f"{source.name}:{node.lineno} clones or installs: {words}"


def is_command(words: list[str]) -> bool:
    """Whether a list looks like a command line rather than a list of names."""
    return any(word.startswith("-") or word in ("install", "clone", "rev-parse", "update", "run") for word in words)


def loading_faults(source: Source) -> Iterator[str]:
    """Models are loaded from files that are here, never by a name on a hub."""
    if allowed(source.name, BUILD_SCRIPTS):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            from_nothing = bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value is None
            local = given.get("local_files_only")
            if not from_nothing and not (isinstance(local, ast.Constant) and local.value is True):
                yield f"{source.name}:{node.lineno} loads without local_files_only=True"


def writing_faults(source: Source) -> Iterator[str]:
    """Files are written, moved and deleted through `security.roots`, or in the places that WRITERS names."""
    if source.layer == "security" or source.name in WRITERS or allowed(source.name, BUILD_SCRIPTS):
        return
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else dotted(node.func)
        module = dotted(node.func).split(".")[0]
        modes = [
            one for one in [*node.args, *(k.value for k in node.keywords if k.arg == "mode")] if is_write_mode(one)
        ]
        by_path = name in _WRITES and not (name in ("copy", "move") and module not in _WRITING_MODULES)
        # Path.replace takes one path; str.replace takes two texts.
        by_path |= (
            name in ("replace", "rename")
            and isinstance(node.func, ast.Attribute)
            and len(node.args) == 1
            and not node.keywords
        )
        if by_path or (name == "open" and modes) or dotted(node.func) in ("os.rename", "os.replace", "os.remove"):
            yield f"{source.name}:{node.lineno} writes by path: {ast.unparse(node)[:80]}"


def is_write_mode(node: ast.expr) -> bool:
    value = node.value if isinstance(node, ast.Constant) else None
    return (
        isinstance(value, str) and len(value) <= 3 and bool(set(value) & set("wax+")) and set(value) <= set("rwaxbt+")
    )


def typed_path_faults(source: Source) -> Iterator[str]:
    """What a person typed becomes a path in `security.roots` (and, for the command line, in the places named here)."""
    for node in ast.walk(source.tree):
        name = node.attr if isinstance(node, ast.Attribute) else ""
        if name == "expandvars" or (name == "expanduser" and not allowed(source.name, PATH_PLACES)):
            yield f"{source.name}:{node.lineno} expands a typed path itself"  # type: ignore[attr-defined]


RULES: list[Rule] = [
    *(plain_http_faults, tls_faults, dangerous_call_faults, program_faults, loading_faults, writing_faults),
    typed_path_faults,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    faults = [fault for source in PRODUCT for fault in rule(source)]
    assert not faults, f"{rule.__doc__}\n" + "\n".join(faults)


BAD_CODE: list[tuple[Rule, str, str]] = [
    (plain_http_faults, "security/bad.py", "x = 'http://huggingface.co/api'"),
    (plain_http_faults, "ui/bad.py", "x = f'see http://example.org/{y}'"),
    (tls_faults, "security/bad.py", "context.check_hostname = False"),
    (tls_faults, "security/bad.py", "context.verify_mode = ssl.CERT_NONE"),
    (tls_faults, "security/bad.py", "session.verify = False"),
    (tls_faults, "security/bad.py", "pool(cert_reqs='CERT_NONE')"),
    (tls_faults, "security/bad.py", "urllib3.disable_warnings()"),
    (dangerous_call_faults, "trainer/bad.py", "x = torch.jit.load(path)"),
    (dangerous_call_faults, "trainer/bad.py", "x = np.load(path)"),
    (dangerous_call_faults, "trainer/bad.py", "x = f(path, allow_pickle=True)"),
    (dangerous_call_faults, "trainer/bad.py", "import zipfile"),
    (dangerous_call_faults, ARCHIVE_WRITER, "x = zipfile.ZipFile(path)"),
    (dangerous_call_faults, ARCHIVE_WRITER, "x = zipfile.ZipFile(path, 'r')"),
    (dangerous_call_faults, "security/bad.py", "x = zipfile.ZipFile(path, 'w')"),
    (dangerous_call_faults, "security/bad.py", "from zipfile import ZipFile"),
    (dangerous_call_faults, "trainer/bad.py", "archive.extractall(folder)"),
    (dangerous_call_faults, "trainer/bad.py", "from yaml import safe_load"),
    (dangerous_call_faults, "trainer/bad.py", "importlib.import_module(name)"),
    (dangerous_call_faults, "ui/bad.py", "os.setuid(0)"),
    (program_faults, "ui/bad.py", "run(['git', 'clone', url])"),
    (program_faults, "trainer/bad.py", "run([python, '-m', 'pip', 'install', name])"),
    (program_faults, "security/bad.py", "run(('sudo', '-n', 'true'))"),
    (program_faults, "ui/bad.py", "run(['bash', '-c', text])"),
    (loading_faults, "trainer/bad.py", "x = AutoencoderKL.from_pretrained(path)"),
    (loading_faults, "trainer/bad.py", "x = AutoencoderKL.from_pretrained(path, local_files_only=False)"),
    (writing_faults, "ui/bad.py", "path.write_text('x')"),
    (writing_faults, "trainer/bad.py", "open(path, 'w')"),
    (writing_faults, "trainer/bad.py", "path.open(mode='ab')"),
    (writing_faults, "trainer/bad.py", "shutil.rmtree(path)"),
    (writing_faults, "trainer/bad.py", "os.replace(a, b)"),
    (writing_faults, "trainer/bad.py", "path.replace(other)"),
    (typed_path_faults, "ui/tabs/bad.py", "path = Path(text).expanduser()"),
    (typed_path_faults, "security/bad.py", "path = os.path.expandvars(text)"),
]


@pytest.mark.parametrize(("rule", "name", "code"), BAD_CODE, ids=lambda value: getattr(value, "__name__", None))
def test_rule_sees_bad_code(rule: Rule, name: str, code: str) -> None:
    assert list(rule(Source(name, code)))


def test_rules_accept_good_code() -> None:
    code = (
        '"""See http://example.org."""\nx = "http://127.0.0.1:7860"\nif text.startswith("http://"):\n    path.open("rb")\n'
        'part = Tokenizer.from_pretrained(folder, local_files_only=True)\nfile.read("w")\nnames = ("git", "a", "b")\n'
        "new = dataclasses.replace(old, name='x')\nother = values.copy()\n"
    )
    assert not [fault for rule in RULES for fault in rule(Source("trainer/good.py", code))]


def test_every_listed_writer_still_writes() -> None:
    """A file that no longer writes must leave the list, or the list would shelter what comes next."""
    for name in WRITERS:
        source = next(one for one in PRODUCT if one.name == name)
        assert list(writing_faults(Source("trainer/elsewhere.py", source.text))), name


def test_the_pages_scripts_make_no_markup_of_texts_and_load_nothing() -> None:
    """File names and captions are other people's texts: they become text nodes, never markup or code."""
    banned = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setTimeout\(\s*['\"]|"
        r"https?://(?!127\.0\.0\.1|localhost)(?!www\.w3\.org/)"
    )
    scripts = sorted((ROOT / "ui" / "assets").glob("*.js"))
    assert len(scripts) > 5
    found = [
        f"{path.name}:{number} {line.strip()[:90]}"
        for path in scripts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if banned.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_secret_is_in_the_repository() -> None:
    """Shapes of tokens and keys, in every file that git tracks. Those of the tests say that they are none."""
    shapes = re.compile(
        r"hf_[A-Za-z0-9]{30,}|ghp_[A-Za-z0-9]{36}|github_pat_\w{60,}|AKIA[0-9A-Z]{16}|xox[bap]-[\w-]{20,}|sk-[A-Za-z0-9]{40,}|"
        r"-----BEGIN (?:RSA |EC |OPENSSH )?PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}"
    )
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this copy has no git history to list its files by")
    found = []
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and path.stat().st_size < 4 << 20:
            for match in shapes.finditer(path.read_bytes().decode("latin-1")):
                if not re.search(r"(?i)canary|example|fake|test|marker|not.?real|(.)\1{5}", match.group()):
                    found.append(f"{name}: {match.group()[:12]}...")
    assert not found, "\n".join(found)
