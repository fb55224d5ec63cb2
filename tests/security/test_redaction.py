"""The redactor: forms of secrets, shapes of tokens, streams cut anywhere, log records, and a terminal that stays one."""

from __future__ import annotations

import base64
import json
import logging
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import pytest

from security.errors import RefusedConfig
from security.log_records import RedactingFormatter, redacting_factory
from security.redaction import find_secrets, redact, refuse_secrets, register, unfinished_secret, visible
from security.streams import KEPT_LINE, MAX_LINE, LineFilter
from trainer.logs import close_logging, configure_logging
from trainer.workspace import REPOSITORY_DIR, Workspace

SECRET = 'tok+/=%&"\\Zz09-_.~aB3kQ9wX'
UNREGISTERED = "hf_" + "Zx9cV8bN7mL6kJ5hG4" * 2
register(SECRET, "test token")

HIDDEN: dict[str, str] = {
    "itself": SECRET,
    "without its ends": SECRET[1:-1],
    "quoted": urllib.parse.quote(SECRET, safe=""),
    "quoted but slashes": urllib.parse.quote(SECRET),
    "form": urllib.parse.urlencode({"x": SECRET}),
    "json": json.dumps({"x": SECRET}),
    "repr": repr({"x": SECRET}),
    "bytes": repr(SECRET.encode()),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "base64 for addresses": base64.urlsafe_b64encode(SECRET.encode()).decode(),
    "hex": SECRET.encode().hex(),
    **{f"basic auth {n}": base64.b64encode(b"user"[:n] + b":" + SECRET.encode() + b"!" * n).decode() for n in range(4)},
}


@pytest.mark.parametrize("form", HIDDEN)
def test_a_secret_is_found_in_every_form(form: str) -> None:
    text = f"before {HIDDEN[form]} after"
    shown = redact(text)
    assert "***" in shown and shown.startswith("before ") and shown.endswith(" after")
    core = SECRET[1:-1]
    for leaf in (core, urllib.parse.quote(core, safe=""), json.dumps(core)[1:-1], core.encode().hex()):
        assert leaf not in shown
    for word in re.findall(r"[A-Za-z0-9+/_-]{8,}", shown):  # no long rest of base64 is left that gives part of it away
        decoded = base64.b64decode(word + "=" * (-len(word) % 4), altchars="-_" if "-" in word else None)
        assert not any(SECRET[at : at + 6].encode() in decoded for at in range(len(SECRET) - 6))


def test_a_secret_in_other_letters_than_ascii_is_found_in_text_and_in_bytes() -> None:
    register("päss/wörter für alle", "password")
    assert redact("x päss/wörter für alle y") == "x *** y"
    assert redact("?q=" + urllib.parse.quote("päss/wörter für alle")) == "?q=***"
    assert redact("?q=" + urllib.parse.quote_plus("päss/wörter für alle")) == "?q=***"
    assert redact("?q=" + urllib.parse.quote("päss/wörter für alle", safe="")) == "?q=***"
    shown = LineFilter().feed("x päss/wörter für alle y\n".encode())
    assert shown == b"x *** y\n"


def test_a_short_text_is_not_masked_anywhere() -> None:
    register("apple", "password")
    assert redact("an apple a day") == "an apple a day"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"use {UNREGISTERED}.", "use ***."),
        ("api_org_" + "a1" * 17, "***"),
        ("ghp_" + "a1B2" * 9, "***"),
        ("github_pat_" + "a1B2_" * 9, "***"),
        ("hf_jwt_" + "a1.B2-" * 9 + "x", "***"),
        ("Authorization: Bearer abc", "Authorization: Bearer abc"),
        ("Authorization: Bearer abcdef12", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic YWJjOmRlZg=='}", "{'authorization': 'Basic ***'}"),
        ("(b'Authorization', b'Bearer abcdefgh')", "(b'Authorization', b'Bearer ***')"),
        ("Cookie: safelight-7860=abcdefgh; other=12345678", "Cookie: ***"),
        ("https://someone:pa55word@example.com/x", "https://***@example.com/x"),
        ("GET /x?token=abcd1234&page=2 HTTP/1.1", "GET /x?token=***&page=2 HTTP/1.1"),
        (
            "/f?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=00ff00ff&x=1",
            "/f?X-Amz-Credential=***&X-Amz-Signature=***&x=1",
        ),
        ("/f?Policy=eyJhIjox&Signature=ab~cd&Key-Pair-Id=K1234", "/f?Policy=***&Signature=***&Key-Pair-Id=***"),
        ("CIVITAI_TOKEN=0123456789abcdef0123456789abcdef", "CIVITAI_TOKEN=***"),
        ('{"hf_token": "abcdefgh1234"}', '{"hf_token": "***"}'),
        ("--password=correcthorse", "--password=***"),
        ("client_secret%3Dabcdefgh12", "client_secret%3D***"),
        (repr(f"a\n{UNREGISTERED}"), "'a\\n***'"),
        (f"a\\x0d{UNREGISTERED}\\u2028{UNREGISTERED}", "a\\x0d***\\u2028***"),
        (f"a%20{UNREGISTERED}", "a%20***"),
        (f"\x1b[1;31m{UNREGISTERED}\x1b[0m", "\x1b[1;31m***\x1b[0m"),
        (f"\x1b[m{UNREGISTERED}\x1b(B{UNREGISTERED}", "\x1b[m***\x1b(B***"),
    ],
)
def test_tokens_that_nobody_registered_are_told_by_shape_or_name(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "dataset.max_token_length = 75",
        "dataset.keep_tokens = 12345678",
        "1girl, hf_hair, holding token, secret garden, password: none",
        "token = secrets.token_urlsafe(32)",
        "see https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0?x=1",
        "step 12/400 (3%)  loss 0.1234  1.20 s a step  about 8 min left",
        "sha256 " + "0123456789abcdef" * 4,
        "/home/someone/datasets/cat/photo_2024-01-01_12-34-56.png",
        "tokenizer: clip-vit-large-patch14",
        "a basic understanding of light, a bearer documents",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_everything_that_is_shown_of_json_is_json_still() -> None:
    value = {"token": "abcdefgh12", "message": f"got {SECRET}", "list": [SECRET, 1], UNREGISTERED: None}
    shown = redact(json.dumps(value, indent=1))
    assert json.loads(shown)["list"] == ["***", 1]


def test_files_that_are_passed_on_are_refused_rather_than_masked() -> None:
    refuse_secrets("a prompt about a secret garden, token: none, password: letmein", "This file")
    for text in (f"trigger = {json.dumps(SECRET)}", UNREGISTERED, "https://a:b@example.com/", SECRET[1:-1]):
        with pytest.raises(RefusedConfig, match="This file would hold") as error:
            refuse_secrets(text, "This file")
        assert SECRET[1:-1] not in str(error.value) and UNREGISTERED not in str(error.value)
    with pytest.raises(RefusedConfig, match="test token"):
        refuse_secrets(SECRET, "This file")


# Streams


def through(pieces: list[bytes], *, pauses: bool) -> bytes:
    lines = LineFilter()
    shown = b""
    for piece in pieces:
        shown += lines.feed(piece)
        if pauses:
            shown += lines.pause()
    return shown + lines.end()


@pytest.mark.parametrize("pauses", [False, True])
@pytest.mark.parametrize("secret", [SECRET, UNREGISTERED, SECRET.encode().hex()], ids=["registered", "shape", "hex"])
def test_a_secret_that_is_cut_at_any_place_is_masked(secret: str, pauses: bool) -> None:
    for first in range(len(secret) + 1):
        pieces = [b"say " + secret[:first].encode(), secret[first:].encode() + b" and go\nnext"]
        shown = through(pieces, pauses=pauses)
        assert shown.startswith(b"say ") and shown.endswith(b" and go\nnext") and b"***" in shown
        assert not any(secret[at : at + 8].encode() in shown for at in range(len(secret) - 8)), shown


@pytest.mark.parametrize("pauses", [False, True])
def test_a_secret_that_comes_in_single_bytes_is_masked(pauses: bool) -> None:
    data = f"say {SECRET} and {UNREGISTERED} end".encode()
    shown = through([data[at : at + 1] for at in range(len(data))], pauses=pauses)
    # Three letters may be out before they look like anything; what follows them is masked all the same.
    assert re.fullmatch(rb"say (tok)?(\*\*\*)+ and (hf_?)?(\*\*\*)+ end", shown), shown


def test_the_beginning_of_a_secret_is_held_back_and_then_let_out_if_it_was_none() -> None:
    lines = LineFilter()
    lines.feed(b"Loading " + SECRET[:6].encode())
    assert lines.pause() == b"Loading "
    assert lines.is_waiting
    assert lines.feed(b"or not") == b""
    assert lines.pause() == SECRET[:6].encode() + b"or not"


def test_a_cut_off_secret_at_the_end_is_masked() -> None:
    lines = LineFilter()
    lines.feed(b"it is " + SECRET[:20].encode())
    assert lines.end() == b"it is ***"


def test_prompts_and_progress_come_out_at_a_pause() -> None:
    lines = LineFilter()
    for text in (b"Password: ", b"\r 10% done", b"\r\x1b[Kstep 3/10 loss 0.5", b"continue? [y/n] "):
        assert lines.feed(text) + lines.pause() == text


def test_bytes_that_are_no_text_pass_unchanged() -> None:
    data = random.Random(1).randbytes(300_000)
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    assert through(pieces, pauses=False) == data


def test_a_secret_deep_in_a_line_without_end_is_masked_and_the_line_comes_out_by_and_by() -> None:
    lines = LineFilter()
    filler = b"0123456789 " * 1000
    data = filler * 8 + SECRET.encode() + filler * 8
    shown = b""
    for at in range(0, len(data), 4096):
        shown += lines.feed(data[at : at + 4096])
        assert len(lines._line) <= MAX_LINE + 4096 and len(shown) >= at - MAX_LINE
    shown += lines.end()
    assert shown == data.replace(SECRET.encode(), b"***")
    assert 4 * len(SECRET) < KEPT_LINE


def test_where_an_unfinished_secret_begins() -> None:
    assert unfinished_secret("x " + SECRET[:5]) == 2
    assert unfinished_secret("x " + SECRET[:3]) == 5
    assert unfinished_secret("x hf_ab") == 2
    assert unfinished_secret("a token=ab") == 2
    assert unfinished_secret("a token=ab", by_name=False) == 10
    assert unfinished_secret("nothing here") == 12


def test_neighbouring_secrets_are_one_mask() -> None:
    assert redact(SECRET + SECRET) == "***"
    assert find_secrets("nothing") == []


# Log records


def logged(message: object, *arguments: object, exc_info: bool = False) -> str:
    make = redacting_factory(logging.LogRecord)
    found = sys.exc_info() if exc_info else None
    record = make("safelight.x", logging.WARNING, "f.py", 1, message, arguments, found)
    return logging.Formatter("%(levelname)s %(message)s").format(record)


def test_records_are_clean_for_any_formatter() -> None:
    assert logged("got %s", SECRET) == "WARNING got ***"
    assert logged("got %(a)s", {"a": SECRET}) == "WARNING got ***"
    assert logged(f"got {SECRET}") == "WARNING got ***"
    assert logged("got %s", ValueError(f"bad {SECRET}")) == "WARNING got bad ***"
    assert logged("got %r", SECRET.encode()) == "WARNING got '***'"
    assert logged("%s%s", SECRET[:12], SECRET[12:]) == "WARNING ***"
    assert logged("%d of %.1f", 3, 4.0) == "WARNING 3 of 4.0"
    assert logged("100%") == "WARNING 100%"


def test_the_traceback_of_a_record_is_clean() -> None:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise RuntimeError(f"while using {SECRET}") from error
    except RuntimeError:
        text = logged("failed", exc_info=True)
    assert "RuntimeError: while using ***" in text and "KeyError" in text
    assert SECRET[1:-1] not in text and repr(SECRET)[2:-2] not in text


def test_a_message_cannot_forge_a_line_or_steer_a_terminal() -> None:
    forged = "x\n2026-01-01 00:00:00,000 INFO safelight: all is well\r\x1b[2J\x9b\u2028\u202e"
    assert visible(forged) == (
        "x\\n2026-01-01 00:00:00,000 INFO safelight: all is well\\x0d\\x1b[2J\\x9b\\u2028\\u202e"
    )
    text = logged("name is %s", forged)
    assert "\n" not in text and "\x1b" not in text
    record = logging.LogRecord("safelight", logging.INFO, "f", 1, forged, (), None)
    lines = RedactingFormatter("%(levelname)s %(message)s").format(record).split("\n")
    assert lines[0] == "INFO x" and all(line.startswith("    ") for line in lines[1:])
    assert "\x1b" not in "".join(lines)


def test_the_log_file_is_written_by_a_thread_of_its_own_and_redacted(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "workspace")
    configure_logging(workspace)
    try:
        logging.getLogger("safelight.test").info("using %s", SECRET)
        try:
            raise ValueError(f"bad header {SECRET!r}")
        except ValueError:
            logging.getLogger("elsewhere").exception("a library failed")
    finally:
        close_logging()
    text = (workspace.logs_dir / "safelight.log").read_text()
    assert re.search(r"^[\d-]+ [\d:,]+ INFO safelight.test: using \*\*\*$", text, re.MULTILINE)
    assert "    ValueError: bad header '***'" in text
    logging.getLogger("safelight.test").info("after the end")
    assert "after the end" not in (workspace.logs_dir / "safelight.log").read_text()


# The whole, in a process of its own

PRELUDE = "import os, sys, time; from security.output import *; from security.redaction import register\n"


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PRELUDE + f"register({SECRET!r}, 'x'); s = {SECRET!r}; install()\n" + code]
    return subprocess.run(command, cwd=REPOSITORY_DIR, capture_output=True, timeout=60, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_output_keeps_its_bytes_its_order_and_its_exit_code() -> None:
    code = (
        "print('one'); sys.stdout.flush(); os.write(1, b'two\\n'); os.system('echo three')\n"
        "sys.stdout.buffer.write(bytes(range(256))); sys.stdout.flush(); print('four'); sys.stderr.write('err\\n')\n"
        "sys.exit(7)"
    )
    done = run_python(code)
    assert done.stdout == b"one\ntwo\nthree\n" + bytes(range(256)) + b"four\n"
    assert (done.stderr, done.returncode) == (b"err\n", 7)


def test_both_streams_to_one_place_keep_their_order() -> None:
    code = "for n in range(200):\n    os.write(1 + n % 2, b'%d\\n' % n)"
    command = [sys.executable, "-c", PRELUDE + "install()\n" + code]
    done = subprocess.run(command, cwd=REPOSITORY_DIR, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    assert done.stdout.split() == [b"%d" % n for n in range(200)]


def test_much_output_arrives_whole() -> None:
    done = run_python("for n in range(40000): print(n, 'x' * 40)")
    assert done.stdout.count(b"\n") == 40000 and done.stdout.endswith(b"39999 " + b"x" * 40 + b"\n")


def test_os_exit_after_a_drain_loses_nothing() -> None:
    done = run_python("print('said', s); sys.stderr.write('also'); drain(); os._exit(3)")
    assert (done.stdout, done.stderr, done.returncode) == (b"said ***\n", b"also", 3)


def test_what_is_said_after_the_end_is_there_too() -> None:
    code = "class Late:\n    def __del__(self, write=os.write): write(1, b'late\\n')\nlate = Late(); print('end')"
    assert run_python(code).stdout == b"end\nlate\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    pipe = f"{sys.executable} launch.py --no-venv models --json | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, cwd=REPOSITORY_DIR, check=False, timeout=60)
    assert (done.stdout, done.stderr) == (b"[0\n", b"")


def test_a_writer_hears_that_its_reader_is_gone() -> None:
    code = "try:\n    for n in range(10**6): print(n)\nexcept BrokenPipeError: os._exit(5)"
    command = [sys.executable, "-c", PRELUDE + "install()\n" + code]
    with subprocess.Popen(command, cwd=REPOSITORY_DIR, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.wait(30) == 5


def test_a_full_disk_is_told() -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "launch.py", "--no-venv", "runs"]
        done = subprocess.run(command, cwd=REPOSITORY_DIR, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == b"safelight: what was printed could not be written: No space left on device\n"


INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""Started in the background of a shell, a program inherits that Ctrl+C is ignored."""


def test_an_interrupt_ends_it_as_ever() -> None:
    command = [sys.executable, "-c", PRELUDE + INTERRUPTIBLE + "install()\nprint('ready', flush=True)\ntime.sleep(60)"]
    process = subprocess.Popen(command, cwd=REPOSITORY_DIR, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert errors.endswith(b"KeyboardInterrupt\n") and process.returncode == -signal.SIGINT


def test_a_child_that_outlives_the_program_does_not_hold_it() -> None:
    began = time.monotonic()
    done = run_python("import subprocess; subprocess.Popen(['sleep', '5'], stdout=2); print('end')")
    assert done.stdout == b"end\n" and done.returncode == 0
    assert time.monotonic() - began < 4


def test_a_forked_child_can_print() -> None:
    code = (
        "import multiprocessing\n"
        "child = multiprocessing.get_context('fork').Process(target=print, args=(s, 'from the child'))\n"
        "child.start(); child.join(); print(child.exitcode)"
    )
    assert run_python(code).stdout == b"*** from the child\n0\n"


def test_a_crash_tells_where_it_was() -> None:
    done = run_python("import ctypes; ctypes.string_at(0)")
    assert done.returncode == -signal.SIGSEGV
    assert b"Segmentation fault" in done.stderr and b"string_at" in done.stderr


def test_no_core_dump_is_written() -> None:
    assert run_python("import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[0])").stdout == b"0\n"


def test_what_is_meant_for_the_owner_is_shown_and_in_order() -> None:
    done = run_python("print('first'); show_to_owner('Password: ' + s); print('last', s)")
    assert done.stdout == f"first\nPassword: {SECRET}\nlast ***\n".encode()


def test_a_second_install_and_replaced_streams_change_nothing() -> None:
    done = run_python("before = sys.stdout; install(); print(sys.stdout is before)")
    assert done.stdout == b"True\n"
    code = "import io, sys\nsys.stdout = mine = io.StringIO()\nfrom security.output import install\ninstall()\n"
    code += "sys.stderr.write(str(sys.stdout is mine))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY_DIR, capture_output=True, check=True)
    assert done.stderr == b"True"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    command = f"{sys.executable} -c 'from security.output import *; install(); drain(); lost_output()' {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY_DIR, check=False, timeout=30)
    assert done.returncode == 0


def test_a_closed_stream_is_an_empty_one_and_no_file_takes_its_place(tmp_path: Path) -> None:
    code = (
        PRELUDE + "install(); install()\n"
        f"with open({str(tmp_path / 'mine')!r}, 'wb', buffering=0) as mine:\n"
        "    os.write(1, b'of a C library'); print('a line', sys.stdout.isatty(), sys.stdin.read()); os.system('echo child')\n"
        "    assert mine.fileno() > 2\n"
        "sys.stderr.write('done')"
    )
    command = ["bash", "-c", 'exec "$0" -c "$1" <&- >&-', sys.executable, code]
    done = subprocess.run(command, cwd=REPOSITORY_DIR, stderr=subprocess.PIPE, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"done")
    assert (tmp_path / "mine").read_bytes() == b""


def test_a_terminal_stays_a_terminal() -> None:
    code = (
        PRELUDE + f"register({SECRET!r}, 'x'); install()\n"
        "print(sys.stdout.isatty(), sys.stderr.isatty(), terminal_columns())\n"
        f"print('\\rworking', end='', flush=True); time.sleep(0.4); print(' {SECRET[:4]}', end='', flush=True)\n"
        f"time.sleep(0.4); print({SECRET[4:]!r}, flush=True)"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY_DIR)
        os.unsetenv("COLUMNS")  # readline may have set it behind Python's back
        os.execv(sys.executable, [sys.executable, "-c", "import termios, fcntl, struct\n"
                 "fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 123, 0, 0))\n" + code])  # fmt: skip
    shown, first_seen = b"", 0.0
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux tells so that the other side is closed
            break
        if not piece:
            break
        shown += piece
        if b"working" in shown and not first_seen:
            first_seen = time.monotonic()
    ended = time.monotonic()
    os.waitpid(pid, 0)
    os.close(terminal)
    assert b"True True 123" in shown
    assert shown.endswith(b"\rworking ***\r\n")
    assert ended - first_seen > 0.5, "the progress line was held back until its end"


def test_the_test_command_is_left_alone() -> None:
    command = [sys.executable, "launch.py", "--no-venv", "test", "--version"]
    done = subprocess.run(command, cwd=REPOSITORY_DIR, capture_output=True, check=True, timeout=60)
    assert b"pytest" in done.stdout


@pytest.mark.parametrize(
    "text",
    ["://" + "a:" * 200_000, "://a:" * 80_000, "Bearer " * 60_000, "token=" * 70_000, "cookie:" + "a;" * 200_000],
    ids=lambda text: text[:7],
)
def test_no_text_takes_long_to_look_through(text: str) -> None:
    begin = time.perf_counter()
    redact(text)
    assert time.perf_counter() - begin < 5.0  # 0.1 s here; one that tries every beginning with every end takes minutes
