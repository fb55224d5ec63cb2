"""The door: makes the environment in .venv, repairs it, and starts Safelight in it. Standard library only.

`python launch.py` serves the page, `python launch.py COMMAND` runs a command of ui/cli.py; `--help` lists them.
This file must parse under Python 3.6, so that an old Python gets a sentence and not a SyntaxError.
"""

import os
import shutil
import sys


def say(text: str) -> None:
    """One line for the person who waits."""
    sys.stderr.write(f"safelight: {text}\n")


def refuse(message: str) -> None:
    """Says what is wrong and what to do, and ends with exit code 2."""
    say(message)
    sys.exit(2)


def refuse_unfit_python() -> None:
    """Ends with a sentence when this Python is one that the pinned packages don't run on."""
    version = tuple(sys.version_info[:2])
    if (3, 11) <= version <= (3, 14) and sys.maxsize > 2**32:
        return
    found = [name for name in ("python3.13", "python3.12", "python3.11", "python3.14") if shutil.which(name)]
    way_out = f"run `{found[0]} launch.py` instead" if found else "install one, then start again with it"
    refuse(f"this is Python {version[0]}.{version[1]}, but a 64-bit Python 3.11 to 3.14 is needed: {way_out}.")


refuse_unfit_python()  # before any line below is run: they use newer Python

import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import platform
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
MARKER = VENV / "safelight.json"
LOG = VENV / "install.log"
LOCK = ROOT / ".venv.lock"
REQUIREMENTS = ROOT / "requirements.txt"
TEST_REQUIREMENTS = ROOT / "requirements-test.txt"
CU126_REQUIREMENTS = ROOT / "security" / "requirements-cu126.txt"

PIP = "pip==26.3 --hash=sha256:f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
TORCH_INDEX = "https://download.pytorch.org/whl/"
HASHED_INDEXES = ("cpu", "cu126", "cu130")  # folders whose wheels stand in requirements.txt with their hashes
CUDA_PART = re.compile(r"nvidia-|cuda-|triton==")
# torch 2.13 on the default index is built for CUDA 13.0, which needs driver 580 and a Turing card (pytorch RELEASE.md);
# older drivers and cards are served by the CUDA 12.6 build.
CUDA_13_DRIVER, CUDA_13_CAPABILITY = 580, 7.5
GIGABYTES_NEEDED = {"cpu": 3, "mps": 3, "cuda": 10}
# Before Python starts: glibc keeps freed tensors (each went back to the kernel, 22,000 page faults a demo step), and idle
# threads sleep (spinning ones made a demo step take 15 s instead of 0.2 s beside another busy program).
RUNTIME = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_MAX_": "0"}
RUNTIME.update(MALLOC_TRIM_THRESHOLD_="17179869184", MALLOC_TOP_PAD_="268435456")
# Shows that the large packages work on this system, and compiles what is used of them for the next start.
TRY_OUT = "import gradio, peft; from diffusers import StableDiffusionXLPipeline"
DISK_FULL = "the disk is full. Make room where Safelight lies and start again; the installation goes on where it was."
NO_NETWORK = """NewConnectionError|ConnectTimeout|ReadTimeout|timed out|Max retries exceeded|Network is unreachable|
ProxyError|Name or service not known|Temporary failure in name resolution|getaddrinfo failed|nodename nor servname|
Connection refused|Connection reset|IncompleteRead|SSLError""".replace("\n", "")
ALTERED = "{0} is not the file that requirements.txt means: its SHA-256 differs, so it was not installed. Somebody altered it, "
FAILURES = (
    ("No space left on device|Disk quota exceeded|not enough space on the disk", DISK_FULL),
    (NO_NETWORK, "the package index can't be reached. Check the network or pip's proxy settings."),
    (r"DO NOT MATCH THE HASHES.*?^ +(\S+)", ALTERED + "or an index in pip's settings builds its own; see {log}."),
    (r"No matching distribution found for (\S+)", "{0} has no build for this system and this Python; see {log}."),
    (r"^(ERROR[^\n]*)(?!.*^ERROR)", "pip failed ({0}). The details are in {log}."),
)
OVERVIEW = """usage: python launch.py [COMMAND] [OPTIONS]

Trains LoRAs for image diffusion models; without a command it serves the page on 127.0.0.1:7860.
The first start installs the pinned packages into .venv; after that `python launch.py --help` lists the commands.
--no-venv uses the Python that runs this, with the packages it has (containers, notebooks).
"""


@dataclasses.dataclass(frozen=True)
class TorchBuild:
    """Which build of torch fits this machine. `index`: where it lies, empty for the index that pip is set up with."""

    kind: str
    index: str = ""
    may_fall_back: bool = False
    is_hashed: bool = True


class Refused(Exception):
    """Something that one sentence explains."""


def main(arguments: list[str]) -> int:
    """Runs the door. Returns the exit code; on POSIX a started command replaces this process and never returns."""
    here = "--no-venv" in arguments
    arguments = [argument for argument in arguments if argument != "--no-venv"] if here else arguments
    tests = arguments[:1] == ["test"]
    try:
        if here:
            return run_here(arguments)
        if not is_ready(tests):
            if {"-h", "--help"} & set(arguments):
                sys.stdout.write(OVERVIEW)
                return 0
            install(tests)
        return start(str(venv_python()), arguments)
    except Refused as refusal:
        refuse(str(refusal))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        refuse(DISK_FULL)
    except KeyboardInterrupt:
        sys.stderr.write("\nsafelight: interrupted. The next start goes on from here.\n")
    return 130


def start(python: str, arguments: list[str]) -> int:
    """Runs this file in that Python, in place of this process where the system can, so that signals reach it once."""
    command = [python, str(Path(__file__).resolve()), "--no-venv", *arguments]
    environment = {**memory_settings(), **os.environ}
    environment.pop("PYTHONHOME", None)
    if os.name == "posix":
        os.execve(python, command, environment)
    child = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the console sends Ctrl+C to the child as well: it decides
    return child.wait()


def run_here(arguments: list[str]) -> int:
    """Runs a command in this very Python, after checking that it has what is needed."""
    roots = REQUIREMENTS.read_text(encoding="utf-8").split("# What those bring")[0]
    pins = re.findall(r"^(([A-Za-z0-9_.-]+)==[^\s;]+)(?: \\)?$", roots, re.MULTILINE)
    missing = [pin for pin, name in pins if not any(importlib.metadata.distributions(name=name))]
    if missing:
        raise Refused(f"this Python lacks some packages. Run: {sys.executable} -m pip install {' '.join(missing)}")
    if any(name not in os.environ for name in memory_settings()):
        return start(sys.executable, arguments)
    sys.path.insert(0, str(ROOT))
    from ui.cli import main as run_command

    return run_command(arguments)


def memory_settings() -> dict[str, str]:
    """Settings of the C library that must be in the environment before Python starts; none where it isn't glibc."""
    return RUNTIME if platform.libc_ver()[0] == "glibc" else {}


def venv_python() -> Path:
    """The interpreter of the environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def python_starts() -> str | None:
    """The version that the environment's interpreter reports; None when it is gone or does not start."""
    return output_of([str(venv_python()), "-I", "-S", "-c", "import platform; print(platform.python_version())"])


def output_of(command: list[str]) -> str | None:
    """What a short command prints; None when it can't be run or fails."""
    try:
        done = subprocess.run(command, stdout=PIPE, stderr=DEVNULL, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def read_requirements(file: Path) -> list[str]:
    """The requirements of a file, each in one line with its hashes."""
    lines = file.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


def fingerprint(*files: Path) -> str:
    """Changes when a pinned version or a hash does."""
    texts = [file.read_text(encoding="utf-8") for file in (*files, CU126_REQUIREMENTS) if file.exists()]
    return hashlib.sha256("\n".join([PIP, *texts]).encode()).hexdigest()


def read_marker() -> dict[str, str]:
    """What the last completed installation left behind; empty when none was completed."""
    try:
        return dict(json.loads(MARKER.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def is_ready(tests: bool) -> bool:
    """Whether the last installation was completed for these very requirements and its Python still starts."""
    marker = read_marker()
    wanted_index = os.environ.get("SAFELIGHT_TORCH_INDEX") or marker.get("torch_index")
    return (
        marker.get("requirements") == fingerprint(REQUIREMENTS)
        and (not tests or marker.get("tests") == fingerprint(REQUIREMENTS, TEST_REQUIREMENTS))
        and marker.get("torch_index") == wanted_index
        and marker.get("python") == python_starts()
    )


def choose_torch() -> TorchBuild:
    """The build for this machine's hardware, or the one that SAFELIGHT_TORCH_INDEX asks for."""
    asked = os.environ.get("SAFELIGHT_TORCH_INDEX", "")
    if asked:
        folder = asked.rstrip("/").rpartition("/")[2]
        return TorchBuild("cpu" if folder.endswith("cpu") else "cuda", asked, is_hashed=folder in HASHED_INDEXES)
    if sys.platform == "darwin":
        if platform.machine() == "x86_64":
            raise Refused("torch has no builds for Macs with an Intel processor; Safelight needs Apple silicon.")
        return TorchBuild("mps")
    driver, capability = nvidia_driver()
    if driver is None:
        return TorchBuild("cpu", f"{TORCH_INDEX}cpu", may_fall_back=True)
    if driver < CUDA_13_DRIVER or capability < CUDA_13_CAPABILITY:
        return TorchBuild("cuda", f"{TORCH_INDEX}cu126")
    return TorchBuild("cuda", f"{TORCH_INDEX}cu130" if sys.platform == "win32" else "")


def nvidia_driver() -> tuple[int | None, float]:
    """Major version of the NVIDIA driver (None: no card) and the weakest card's compute capability."""
    program = shutil.which("nvidia-smi")
    if program:
        output = output_of([program, "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]) or ""
        cards = re.findall(r"^(\d+)\.[\d.]+,\s*(\d+\.\d+)", output, re.MULTILINE)
        if not cards:
            return None, 0.0
        return min(int(driver) for driver, _ in cards), min(float(capability) for _, capability in cards)
    library = Path(os.environ.get("SYSTEMROOT", "C:/Windows")) / "System32" / "nvml.dll"
    if Path("/proc/driver/nvidia/version").exists() or (os.name == "nt" and library.exists()):
        return CUDA_13_DRIVER, CUDA_13_CAPABILITY  # it can't be asked, so take it for a recent one
    return None, 0.0


def install(tests: bool) -> None:
    """Makes or repairs the environment. The marker is written last, so an interrupted installation is done again."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl+C does: pip must not go on alone
    with only_one_at_a_time():
        if is_ready(tests):  # another start did it while this one waited
            return
        began = time.monotonic()
        build = choose_torch()
        free, needed = shutil.disk_usage(ROOT).free / 1e9, GIGABYTES_NEEDED[build.kind]
        if free < needed and not VENV.exists():
            raise Refused(f"the installation needs {needed} GB but only {free:.1f} GB are free in {ROOT}. Make room.")
        before = read_marker()
        tests = tests or bool(before.get("tests"))
        make_venv()
        MARKER.unlink(missing_ok=True)
        removed = drop_half_written_packages()
        LOG.write_text(f"{time.ctime()} {platform.platform()} {sys.version} {build}\n", encoding="utf-8")
        torch = {"torch": build.kind, "torch_index": build.index}
        Installation(build, tests, {**before, **torch} != before).run()
        torch["torch_hash"] = "checked" if build.is_hashed else "unknown"
        with_tests = fingerprint(REQUIREMENTS, TEST_REQUIREMENTS) if tests else ""
        marker = {"python": python_starts(), "requirements": fingerprint(REQUIREMENTS), "tests": with_tests, **torch}
        MARKER.write_text(json.dumps(marker, indent=1), encoding="utf-8")
        say(f"installed in {time.monotonic() - began:.0f} s" + (f", repaired: {', '.join(removed)}" if removed else ""))


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[None]:
    """Holds the installation's lock; a second start waits for the first. The system gives it back after a crash."""
    try:
        file = LOCK.open("a+b")
    except OSError as error:
        raise Refused(f"{ROOT} can't be written ({error.strerror}). Move Safelight to a folder of yours.") from None
    with file:
        if not try_lock(file.fileno()):
            say("another start is installing; waiting for it")
            while not try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def try_lock(descriptor: int) -> bool:
    """Takes the lock if it is free. Closing the file gives it back."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def make_venv() -> None:
    """Creates .venv, also in place of one whose Python is gone or does not start."""
    if VENV.exists():
        if output_of([str(venv_python()), "-I", "-m", "pip", "--version"]):
            return
        say("the environment in .venv is broken; making a new one")
        shutil.rmtree(VENV)
    import venv

    try:
        import ensurepip  # noqa: F401  Debian and Ubuntu split it off
    except ImportError:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise Refused(f"this Python can't make environments. On Debian or Ubuntu: apt install {package}") from None
    try:
        venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(VENV)
    except subprocess.CalledProcessError as error:
        reason = (error.output or b"no reason was given").decode(errors="replace").strip().splitlines()[-1]
        raise Refused(f"the environment could not be made in {VENV}: {reason}") from None


def site_packages() -> Path:
    """Where the environment's packages lie."""
    return next(iter(VENV.glob("lib/python3*/site-packages")), VENV / "Lib" / "site-packages")


def drop_half_written_packages() -> list[str]:
    """Forgets packages with a missing or cut file, which pip would take for installed, and returns their names."""
    dropped = []
    for information in sorted(site_packages().glob("*.dist-info")):
        record = information / "RECORD"
        text = record.read_text(encoding="utf-8", errors="replace") if record.exists() else ""
        sizes = re.findall(r'^"?(.+?)"?,[^,]*,(\d*)$', text, re.MULTILINE)
        files = [(information.parent / path, size) for path, size in sizes if not path.endswith(".pyc")]
        if not files or any(not file.exists() or size not in ("", str(file.stat().st_size)) for file, size in files):
            shutil.rmtree(information)
            dropped.append(information.name.split("-")[0])
    return dropped


class Installation:
    """The pip steps of one installation, with progress and a log."""

    def __init__(self, build: TorchBuild, tests: bool, new_torch: bool) -> None:
        wanted = read_requirements(REQUIREMENTS) + (read_requirements(TEST_REQUIREMENTS) if tests else [])
        self.torch = next((line for line in wanted if line.startswith("torch==")), "")
        self.cuda_parts = [line for line in wanted if CUDA_PART.match(line)]
        self.packages = [line for line in wanted if line not in (self.torch, *self.cuda_parts)]
        self.build, self.new_torch = build, new_torch
        self.began = self.shown = self.moved = time.monotonic()
        self.share, self.phase_share, self.items, self.fetched, self.had = 0.0, 0.0, 1, 0.0, 0
        self.doing, self.done, self.left = "starting", 0.0, 0.0
        self.on_terminal = sys.stderr.isatty()

    def run(self) -> None:
        """Brings the environment to the pinned versions. Raises Refused with the reason when that fails."""
        say(f"installing {len(self.packages)} packages and torch ({self.build.kind}) into .venv; log: .venv/{LOG.name}")
        shares = (0.15, 0.7) if self.build.kind == "cuda" else (0.4, 0.15)  # of the whole time: packages, torch
        self.install([PIP])
        self.begin_phase(shares[0], len(self.packages))
        self.install(self.packages, "--progress-bar=raw")
        if self.torch:
            self.begin_phase(shares[1], 20 if self.build.kind == "cuda" else 1)
            self.install_torch()
            self.begin_phase(1 - sum(shares), 1)
            self.doing = "trying out"
            code, output = self.call(["-c", TRY_OUT])
            if code != 0:
                raise Refused(f"the packages don't work here: {(output or ['no reason given'])[-1]}. See {LOG}.")

    def install(self, packages: list[str], *options: str) -> None:
        """Installs exactly these: nothing is resolved, nothing built, and every file must have one of its hashes."""
        pinned = VENV / "pinned.txt"
        pinned.write_text("\n".join(packages) + "\n", encoding="utf-8")
        options += ("--require-hashes", "--only-binary=:all:", "--no-deps", "--no-warn-script-location")
        # Not compiled: that takes longer than all the rest, and most files are never imported.
        self.pip("install", "--no-compile", *options, "--requirement", str(pinned))

    def install_torch(self) -> None:
        """Installs torch last and alone, so that nothing else comes from its index; then the parts of CUDA it names."""
        index = self.build.index
        if self.build.may_fall_back:
            probe = ["index", "versions", "torch", f"--index-url={index}", "--timeout=8", "--retries=0"]
            if self.call(["-m", "pip", *probe])[0] != 0:
                say(f"{index} can't be reached; taking torch from pip's own index instead")
                index = ""
        elif self.new_torch:
            self.pip("uninstall", "--yes", "torch")  # another build of the same version would count as installed
        options = ["--progress-bar=raw", *([f"--index-url={index}"] if index else [])]
        if not self.build.is_hashed:
            say(f"warning: the hashes of torch from {index} are not known here; that index is taken at its word")
            self.pip("install", "--no-compile", *options, self.torch.split()[0])
            return
        self.install([self.torch], *options)
        needs = "".join(file.read_text(encoding="utf-8") for file in site_packages().glob("torch-*.dist-info/METADATA"))
        if sys.platform == "linux" and "nvidia-cudnn-cu" in needs:
            is_126 = "nvidia-cudnn-cu12" in needs
            self.install(read_requirements(CU126_REQUIREMENTS) if is_126 else self.cuda_parts, "--progress-bar=raw")

    def pip(self, command: str, *arguments: str) -> None:
        """Runs one pip command to its end. Raises Refused with what went wrong."""
        code, output = self.call(["-m", "pip", command, "--no-input", "--disable-pip-version-check", *arguments])
        if code == 0:
            return
        for pattern, sentence in FAILURES:
            match = re.search(pattern, "\n".join(output), re.DOTALL | re.MULTILINE)
            if match:
                raise Refused(sentence.format(*match.groups(), log=LOG))
        raise Refused(f"pip failed (exit code {code}). The details are in {LOG}.")

    def call(self, arguments: list[str]) -> tuple[int, list[str]]:
        """Runs the environment's Python, logs its output and shows progress. Returns the exit code and the lines."""
        environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PYTHONIOENCODING": "utf-8"}
        for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
            environment.pop(name, None)
        command = [str(venv_python()), *arguments]
        process = subprocess.Popen(
            command, env=environment, stdout=PIPE, stderr=STDOUT, encoding="utf-8", errors="replace"
        )
        try:
            with LOG.open("a", encoding="utf-8") as log:
                lines = [line for line in self.lines_of(process) if log.write(line + "\n")]
        finally:  # also when interrupted: pip must not go on alone
            process.terminate()
            process.wait()
            if self.on_terminal:
                sys.stderr.write("\r\x1b[K")
        return process.returncode, lines

    def lines_of(self, process: subprocess.Popen[str]) -> Iterator[str]:
        """pip's lines as they come, with the progress shown in between even while it says nothing."""
        incoming: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            for line in process.stdout or ():
                incoming.put(line.rstrip("\n"))
            process.wait()
            incoming.put(None)

        threading.Thread(target=read, daemon=True).start()
        line: str | None = ""
        while line is not None:
            words = line.split()
            if words[:1] == ["Progress"] and len(words) == 4:  # "Progress 1000 of 2000", in bytes
                self.show(int(words[1]), int(words[3]))
            elif words:
                yield line
                self.take_in(words)
            try:
                line = incoming.get(timeout=0.5)
            except queue.Empty:
                line = ""
                self.show()

    def begin_phase(self, share: float, num_items: int) -> None:
        """A step that takes that share of the whole time and handles that many packages."""
        self.share += self.phase_share
        self.phase_share, self.items, self.fetched = share, num_items, 0.0
        self.had = len(list(site_packages().glob("*.dist-info")))

    def take_in(self, words: list[str]) -> None:
        """Counts what pip says it has done."""
        if words[0] == "Collecting":
            self.doing, self.fetched = f"fetching {words[1]}", int(self.fetched) + 1.0
        elif words[:3] == ["Requirement", "already", "satisfied:"]:
            self.fetched += 1
        elif words[:2] == ["Installing", "collected"]:
            self.doing = "unpacking"
        self.show()

    def show(self, num_bytes: int = 0, size: int = 0) -> None:
        """One updating line on a terminal, a line every ten seconds elsewhere. Fetching counts for 60% of a phase."""
        now = time.monotonic()
        if now - self.shown < (0.3 if self.on_terminal else 10):
            return
        self.shown = now
        unpacked = len(list(site_packages().glob("*.dist-info"))) - self.had if self.doing == "unpacking" else 0
        fetched = self.fetched - (1 - num_bytes / size if size else 0)
        done = self.share + self.phase_share * min(1.0, (0.6 * fetched + 0.4 * unpacked) / self.items)
        if done > self.done:
            self.done, self.moved, self.left = done, now, (now - self.began) * (1 / done - 1)
        seconds = self.left - (now - self.moved)
        left = "" if self.done < 0.02 else f", about {seconds:.0f} s left" if seconds > 2 else ", a few seconds left"
        part = f" ({num_bytes / 1e6:.0f} of {size / 1e6:.0f} MB)" if size > 20e6 else ""
        text = f"{100 * self.done:.0f}% installed{left}: {self.doing}{part}"
        if self.on_terminal:
            sys.stderr.write(f"\r\x1b[K{('safelight: ' + text)[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()
        else:
            say(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
