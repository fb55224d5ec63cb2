"""Figures about Safelight's protections, one command for each: `python benchmarks/security.py checkpoints`.

Without a name all of them are measured. Each prints a table; the raw results go to benchmarks/results/security.json, next
to what was measured when and on which machine, and docs/security-tests.md is made of them. `--corpus DIR` has the checkpoint
checks look at a folder of other people's malicious files too, such as the test data of picklescan
(https://github.com/mmaitre314/picklescan, folder tests).
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "security.json"
Figures = dict[str, Any]
TABLE = "every route"
"""Too long for the terminal: it is in the raw results and on the page made of them."""
_WEIGHT_ENDINGS = (".safetensors",)
PYTHON_FAULTS = (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, ValueError, EOFError, LookupError)
"""What Python's zipfile raises for archives that it can't unpack."""


def refuses(check: Callable[..., object], *arguments: object) -> str:
    """The refusal of a check, "" if it accepts. Anything but a refusal in words comes through as the fault that it is."""
    from security.errors import SafelightError

    try:
        check(*arguments)
    except SafelightError as error:
        return str(error)
    return ""


def check_file(path: Path) -> None:
    """What Safelight does with a file that somebody wants to use as a model: the header check, or the converter's."""
    from security.pickles import check_torch_file
    from security.weights import check_safetensors

    if path.suffix.lower() in _WEIGHT_ENDINGS:
        check_safetensors(path)
        return
    with path.open("rb") as file:
        check_torch_file(file.fileno(), path.name)


def checkpoints(options: argparse.Namespace) -> Figures:
    """Malicious checkpoints and weight files accepted, of those tried; and harmless ones."""
    import torch

    from tests.security.bad_checkpoints import bad_checkpoints
    from tests.security.test_pickles import GOOD
    from tests.security.test_weights import BAD_HEADERS, OTHER_FILES
    from tests.security.weight_files import write_weights

    made: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marker = folder / "marker"
        accepted = []
        bad = bad_checkpoints(str(marker))
        for case, data in bad.items():
            (folder / "m.ckpt").write_bytes(data)
            accepted += [case] * (not refuses(check_file, folder / "m.ckpt"))
        made["malicious checkpoints"] = {"tried": len(bad), "accepted": len(accepted), "which": accepted}
        headers = []
        for case, (header, num_bytes, _) in BAD_HEADERS.items():
            path = write_weights(folder / "m.safetensors", header, num_bytes)
            headers += [case] * (not refuses(check_file, path))
        for case, (data, _) in OTHER_FILES.items():
            (folder / "m.safetensors").write_bytes(data)
            headers += [case] * (not refuses(check_file, folder / "m.safetensors"))
        tried = len(BAD_HEADERS) + len(OTHER_FILES)
        made["malformed weight files"] = {"tried": tried, "accepted": len(headers), "which": headers}
        fine = 0
        for make, _, _ in GOOD.values():
            buffer = io.BytesIO()
            torch.save(make(), buffer)
            (folder / "m.ckpt").write_bytes(buffer.getvalue())
            fine += not refuses(check_file, folder / "m.ckpt")
        made["harmless checkpoints"] = {"tried": len(GOOD), "accepted": fine}
        made["payloads that ran"] = {"count": int(marker.exists())}
    if options.corpus:
        made["corpus"] = corpus(options.corpus)
    return made


def corpus(folder: Path) -> Figures:
    """Every file of a folder, but for Python sources and notes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".py", ".md")]
    accepted = [path.relative_to(folder).as_posix() for path in files if not refuses(check_file, path)]
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files))
    return {"tried": len(files), "accepted": len(accepted), "which": accepted, "files_sha256": digest.hexdigest()}


def addresses(_options: argparse.Namespace) -> Figures:
    """Hostile addresses refused, and the addresses of real downloads accepted."""
    from security.addresses import is_public
    from security.policy import Service
    from security.urls import parse_mirror, parse_redirect, parse_typed
    from tests.security import test_addresses, test_urls

    def count(tried: list[Callable[[], object]]) -> Figures:
        return {"tried": len(tried), "refused": sum(bool(refuses(one)) for one in tried)}

    return {
        "hostile addresses": count([lambda t=text: parse_typed(t) for text, _ in test_urls.REFUSED_URLS]),
        "hostile redirects": count(
            [lambda b=base, t=text: parse_redirect(t, parse_typed(b)) for base, text, _ in test_urls.REFUSED_REDIRECTS]
        ),
        "hostile mirrors": count(
            [lambda t=text: parse_mirror(t, Service.HUGGING_FACE) for text in test_urls.REFUSED_MIRRORS]
        ),
        "IP addresses that are not public": {
            "tried": len(test_addresses.REFUSED_ADDRESSES),
            "refused": sum(not is_public(address) for address in test_addresses.REFUSED_ADDRESSES),
        },
        "real addresses": count([lambda t=text: parse_typed(t) for text, _ in test_urls.ACCEPTED_URLS]),
        "real redirects": count(
            [lambda b=base, t=text: parse_redirect(t, parse_typed(b)) for base, text, _ in test_urls.ACCEPTED_REDIRECTS]
        ),
        "public IP addresses": {
            "tried": len(test_addresses.PUBLIC_ADDRESSES),
            "refused": sum(not is_public(address) for address in test_addresses.PUBLIC_ADDRESSES),
        },
    }


def archives(_options: argparse.Namespace) -> Figures:
    """Hostile archives and wrong pictures refused; and what Python's own zipfile unpacks of the same archives."""
    from security.archives import unpack
    from security.images import clean_copy
    from tests.security.test_images import NO_PICTURES
    from tests.security.zip_files import HOSTILE

    refused = left = by_python = pictures = 0
    endings = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
    for make, _ in HOSTILE.values():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "set.zip").write_bytes(make())
            refused += bool(refuses(unpack, folder / "set.zip", folder / "out", (".png", ".txt")))
            left += [path.name for path in folder.iterdir()] != ["set.zip"]
            try:
                with zipfile.ZipFile(folder / "set.zip") as archive:
                    archive.extractall(folder / "python")
                by_python += 1
            except PYTHON_FAULTS:
                continue
    with tempfile.TemporaryDirectory() as name:
        for data, _ in NO_PICTURES.values():
            for ending in endings:
                path = Path(name) / f"a{ending}"
                path.write_bytes(data)
                pictures += bool(refuses(clean_copy, path, 256))
    return {
        "hostile archives": {"tried": len(HOSTILE), "refused": refused, "left something behind": left},
        "the same with Python's zipfile": {"tried": len(HOSTILE), "unpacked without a word": by_python},
        "wrong pictures": {"tried": len(NO_PICTURES) * len(endings), "refused": pictures},
    }


def canaries(_options: argparse.Namespace) -> Figures:
    """Tokens driven through every way to lose them; what is found of them afterwards, with the redactor and without."""
    from tests.security.canary_child import PATHS
    from tests.security.test_canaries import ALL, Scenario, canary_reports

    scenarios = {"redacted": Scenario(ALL, list(PATHS), 6), "bare": Scenario([], list(PATHS), 1)}
    with tempfile.TemporaryDirectory() as name:
        reports = canary_reports(Path(name), scenarios)
    return {
        title: {
            "ways": report.paths,
            "tokens": report.tokens,
            "places searched": len(report.sinks),
            "bytes searched": sum(report.sinks.values()),
            "hits": sum(map(len, report.lost.values())),
            "ways that lost one": len(report.lost),
        }
        for title, report in reports.items()
    }


def routes(_options: argparse.Namespace) -> Figures:
    """Routes of the page and what they answer to strangers and to the owner; requests that must be turned away."""
    from tests.security.real_page import real_page
    from tests.security.route_table import OPEN_ROUTES, attack_table, route_table

    with tempfile.TemporaryDirectory() as name, real_page(Path(name)) as page:
        rows, attacks = route_table(page), attack_table(page)
    reached = [row.route for row in rows if row.anonymous < 400]
    wrong = [row.request for row in attacks if (row.anonymous, row.owner) != row.wanted]
    return {
        "routes": {"all": len(rows), "open to the owner": len(OPEN_ROUTES), "answer a stranger": len(reached)},
        "what answers a stranger": {"routes": sorted(reached)},
        "requests that must be turned away": {"tried": len(attacks), "not answered as wanted": len(wrong)},
        TABLE: {"rows": [[row.route, row.anonymous, row.owner, row.why] for row in rows]},
    }


def passwords(options: argparse.Namespace) -> Figures:
    """Wrong passwords that are compared in a minute by a real page, with 20 visitors who guess as fast as they can."""
    from security.policy import LOGIN_BASE_DELAY_SECONDS
    from tests.security.guessing import guesses_at_a_page, guesses_in
    from tests.security.real_page import real_page

    seconds = options.seconds
    with (
        tempfile.TemporaryDirectory() as name,
        real_page(Path(name), base_delay_seconds=LOGIN_BASE_DELAY_SECONDS) as page,
    ):
        found = guesses_at_a_page(page, seconds)
    day = guesses_in(86_400.0)
    return {
        "real page": {"seconds": seconds, "compared": found.compared, "turned away": found.turned_away},
        "a day, simulated clock": {"compared": day.compared, "a minute": round(day.compared / 1440, 3)},
    }


def sandbox(_options: argparse.Namespace) -> Figures:
    """What a training run must not do, tried without the sandbox and in it; what it must be able to do; the time it takes."""
    from security.sandbox import confine_thread, probe
    from tests.security.denied_operations import ALLOWED_OPERATIONS, DENIED_OPERATIONS

    if not probe().active:
        return {"none here": {"why": probe().detail}}
    outcome: dict[str, dict[str, bool]] = {}
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        places = made_places(Path(name), stack)

        def attempt(title: str, operations: dict[str, Any]) -> None:
            outcome[title] = {}
            for operation, work in operations.items():
                try:
                    work(places)
                    outcome[title][operation] = True
                except OSError:
                    outcome[title][operation] = False

        def confined() -> None:
            start = time.perf_counter()
            confine_thread(read=[places.dataset], write=[places.run, places.workspace / "cache" / "latents"])
            seconds.append(time.perf_counter() - start)
            attempt("forbidden, in the sandbox", DENIED_OPERATIONS)
            attempt("needed, in the sandbox", ALLOWED_OPERATIONS)

        attempt("forbidden, without it", DENIED_OPERATIONS)
        thread = threading.Thread(target=confined)
        thread.start()
        thread.join()
    return {
        title: {"tried": len(found), "worked": sum(found.values()), "which": [] if "without" in title or "needed" in title
                else [one for one, worked in found.items() if worked]}
        for title, found in outcome.items()
    } | {"time to confine a thread": {"milliseconds": round(seconds[0] * 1000, 1)}}  # fmt: skip


def made_places(folder: Path, stack: ExitStack) -> Any:
    """The folders, port, socket and process that the operations of the sandbox's tests are tried on."""
    from tests.security.denied_operations import Places, open_socket_files

    space, outside = folder / "space", folder / "outside"
    for inner in (
        "datasets/mine",
        "datasets/other",
        "runs/mine",
        "runs/other",
        "models",
        "logs",
        "cache/page",
        "cache/models",
        "cache/latents",
    ):
        (space / inner).mkdir(parents=True)
    (outside / "doomed").mkdir(parents=True)
    for path in (
        *(
            outside / "secret.txt",
            outside / "doomed.txt",
            space / "datasets/mine/000.png",
            space / "datasets/other/a.png",
        ),
        *(space / "models/other.safetensors", space / "runs/other/config.toml", space / "logs/safelight.log"),
        space / "cache/page/upload.png",
    ):
        path.write_text("secret")
    name = f"safelight-benchmark-{os.getpid()}"
    server, abstract = stack.enter_context(socket.socket()), stack.enter_context(socket.socket(socket.AF_UNIX))
    server.bind(("127.0.0.1", 0))
    server.listen(50)
    abstract.bind("\0" + name)
    abstract.listen(50)
    for other in open_socket_files(outside):
        stack.callback(other.close)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    stack.callback(sleeper.wait)
    stack.callback(sleeper.kill)
    return Places(
        space / "runs/mine", space / "datasets/mine", space, outside, server.getsockname()[1], name, sleeper.pid
    )


def verification(options: argparse.Namespace) -> Figures:
    """Checking a model of some gigabytes, against the speed at which the disk can be read at all."""
    import numpy as np

    from security.integrity import sha256_of
    from security.weights import check_finite, check_safetensors

    size = int(options.gigabytes * 1e9) // 4096 * 4096
    made: Figures = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "model.safetensors"
        header = json.dumps({"weight": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
        chance = np.random.default_rng(0)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for start in range(0, size, 1 << 26):
                count = min(1 << 26, size - start) // 2
                file.write(chance.standard_normal(count, dtype=np.float32).astype(np.float16).tobytes())
            file.flush()
            os.fsync(file.fileno())

        def raw() -> None:
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass

        for title, work in (
            ("reading alone", raw),
            ("header check", lambda: check_safetensors(path)),
            ("SHA-256", lambda: sha256_of(path)),
            ("looking for NaN and infinity", lambda: check_finite(path)),
        ):
            cold, warm = timed(path, work, cold=True), timed(path, work, cold=False)
            made[title] = {"first seconds": round(cold, 3), "again seconds": round(warm, 3)}
            if title != "header check":
                made[title] |= {"first GB/s": round(size / cold / 1e9, 2), "again GB/s": round(size / warm / 1e9, 2)}
    made["file"] = {
        "bytes": size,
        "page cache": "dropped before the first time" if can_drop() else "could not be dropped",
    }
    return made


def can_drop() -> bool:
    return hasattr(os, "posix_fadvise")


def timed(path: Path, work: Callable[[], object], *, cold: bool) -> float:
    """Seconds of some work on a file, which is out of the system's cache before if `cold`."""
    if cold and can_drop():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


FIGURES: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "checkpoints": checkpoints,
    "addresses": addresses,
    "archives": archives,
    "canaries": canaries,
    "routes": routes,
    "passwords": passwords,
    "sandbox": sandbox,
    "verification": verification,
}


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    commit = (
        shutil.which("git")
        and subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
    )
    model = "processor unknown"
    if Path("/proc/cpuinfo").exists():
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = named[1] if named else model
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit or "unknown",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "processor": f"{model}, {os.cpu_count()} cores",
    }


def table(name: str, figures: Figures) -> str:
    """The figures of one command as a table of Markdown."""
    lines = [f"## {name}", "", (FIGURES[name].__doc__ or "").splitlines()[0], "", "| what | figures |", "|---|---|"]
    for title, values in figures.items():
        if title == TABLE:
            continue
        shown = ", ".join(f"{key}: {value}" for key, value in values.items() if value != [])
        lines.append(f"| {title} | {shown} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Measures what is asked for, prints it, and keeps it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of: {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="checkpoints of others to try as well")
    parser.add_argument(
        "--gigabytes", type=float, default=2.0, metavar="N", help="size of the model to verify (default: 2)"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="N", help="how long passwords are guessed (default: 60)"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the large file is made (default: temporary folder)"
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}. There are: {', '.join(FIGURES)}")
    os.chdir(ROOT)
    os.environ.setdefault("SAFELIGHT_WORKSPACE", tempfile.mkdtemp(prefix="safelight-benchmark-"))
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in options.figures or FIGURES:
        figures = FIGURES[name](options)
        print(table(name, figures), flush=True)
        results[name] = {"measured": machine(), "figures": figures}
    if not options.no_save:
        from benchmarks.security_page import PAGE, page_of

        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        kept = json.loads(RESULTS.read_text(encoding="utf-8"))  # in the order of the file
        PAGE.write_text(page_of(kept), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
