"""Landlock itself: a thread loses what no rule leaves it, for good, and so does what it starts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from security import landlock
from security.landlock import DEVICE, READ, WRITE, Access, Rule, abi, restrict_thread

pytestmark = pytest.mark.skipif(abi() == 0, reason="this system has no Landlock")


def outcome(operation: Callable[[], object]) -> str:
    try:
        operation()
    except OSError as error:
        return type(error).__name__
    return "worked"


def restricted(rules: Sequence[Rule], *operations: Callable[[], object]) -> list[str]:
    """What the operations come to on a thread with only these rights."""
    results: list[str] = []

    def work() -> None:
        restrict_thread(rules)
        results.extend(outcome(operation) for operation in operations)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(results) == len(operations)
    return results


def test_a_rule_for_a_folder_holds_for_all_below_it(tmp_path: Path) -> None:
    inside, outside = tmp_path / "a" / "b" / "file", tmp_path / "file"
    inside.parent.mkdir(parents=True)
    inside.write_text("x")
    outside.write_text("x")
    rules = [Rule(tmp_path / "a", READ)]
    assert restricted(
        rules,
        inside.read_bytes,
        outside.read_bytes,
        lambda: list(inside.parent.iterdir()),
        lambda: list(tmp_path.iterdir()),
    ) == ["worked", "PermissionError", "worked", "PermissionError"]
    assert restricted(rules, lambda: inside.write_text("y"), inside.unlink) == ["PermissionError", "PermissionError"]


def test_a_rule_for_a_file_holds_for_this_file_only(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("x")
    other.write_text("x")
    assert restricted([Rule(one, WRITE)], one.read_bytes, lambda: one.write_text("y"), other.read_bytes) == [
        *("worked", "worked", "PermissionError")
    ]


def test_links_are_followed_to_where_they_lead(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut" / "file").write_text("x")
    (tmp_path / "open" / "link").symlink_to(tmp_path / "shut" / "file")
    assert restricted([Rule(tmp_path / "open", READ)], (tmp_path / "open" / "link").read_bytes) == ["PermissionError"]


def test_what_is_open_already_stays_open_and_its_path_does_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        again = f"/proc/self/fd/{descriptor}"
        assert restricted([], lambda: os.read(descriptor, 1), lambda: os.open(again, os.O_RDONLY)) == [
            *("worked", "PermissionError")
        ]
    finally:
        os.close(descriptor)


def test_nothing_lifts_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    def lift() -> None:
        restrict_thread([Rule(Path("/"), READ | WRITE | DEVICE)])
        (tmp_path / "file").read_bytes()

    assert restricted([], lift) == ["PermissionError"]


def test_threads_and_programs_that_are_started_inherit_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    results: list[str] = []

    def start_thread() -> None:
        thread = threading.Thread(target=lambda: results.append(outcome(secret.read_bytes)))
        thread.start()
        thread.join()

    everywhere = Access.EXECUTE | READ
    allowed = [
        Rule(Path(path), everywhere) for path in ("/usr", "/lib", "/lib64", "/bin", sys.base_prefix, "/dev/null")
    ]
    codes: list[int] = []
    cat = ["/bin/cat", str(secret)]
    restricted(allowed, start_thread, lambda: codes.append(subprocess.run(cat, capture_output=True).returncode))
    assert results == ["PermissionError"] and codes == [1]
    assert subprocess.run(cat, capture_output=True).returncode == 0


def test_rules_for_what_is_not_there_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    rules = [Rule(tmp_path / "missing", READ), Rule(tmp_path / "file" / "below", READ), Rule(tmp_path, READ)]
    assert restricted(rules, (tmp_path / "file").read_bytes) == ["worked"]


@pytest.mark.parametrize("version", range(1, 8))
def test_older_kernels_get_no_rights_that_they_do_not_know(version: int) -> None:
    if version > abi():
        pytest.skip(f"this kernel has Landlock {abi()}")
    handled = landlock._handled(version)
    attributes, size = landlock._attributes(version, handled)
    assert size == len(attributes) == (8 if version < 4 else 16 if version < 6 else 24)
    assert handled.value.bit_length() == {1: 13, 2: 14}.get(version, 15 if version < 5 else 16)


def test_an_older_kernel_still_denies_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes the short forms that older ones know, so these can be tried here too."""
    for version in range(1, abi() + 1):
        monkeypatch.setattr(landlock, "abi", lambda version=version: version)
        assert restricted([Rule(tmp_path, READ)], lambda: Path("/etc/passwd").read_bytes()) == ["PermissionError"]


def test_new_privileges_are_given_up() -> None:
    def look() -> None:
        status = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()
        assert "NoNewPrivs:\t1" in status

    assert restricted([Rule(Path("/proc"), READ)], look) == ["worked"]
    assert "NoNewPrivs:\t0" in Path("/proc/self/status").read_text()


@pytest.mark.skipif(abi() < 4, reason=f"this kernel has Landlock {abi()}, which knows no network")
def test_tcp_is_denied_in_both_directions() -> None:
    with socket.socket() as server, socket.socket() as client, socket.socket() as other:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert restricted(
            [], lambda: client.connect(server.getsockname()), lambda: other.bind(("127.0.0.1", 0)), server.getsockname
        ) == ["PermissionError", "PermissionError", "worked"]
        client.connect(server.getsockname())


@pytest.mark.skipif(abi() < 6, reason=f"this kernel has Landlock {abi()}, which knows no scopes")
def test_abstract_sockets_of_others_are_denied_and_own_signals_are_not() -> None:
    name = f"\0safelight-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(name)
        server.listen()
        own = os.getpid()
        assert restricted([], lambda: client.connect(name), lambda: os.kill(own, signal.SIGCONT)) == [
            *("PermissionError", "worked")
        ]
        client.connect(name)
