"""The command that makes the published figures still runs, and the figures that need no machine of their own are perfect."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import security_page
from benchmarks.security import FIGURES, RESULTS, check_file, corpus, refuses, table
from tests.security import pages
from tests.security.weight_files import write_one_tensor


def test_figures_of_addresses_and_archives() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/security.py", "addresses", "archives", "--no-save"],
        cwd=pages.ROOT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "## addresses" in done.stdout and "## archives" in done.stdout
    options = argparse.Namespace()
    for title, values in FIGURES["addresses"](options).items():
        hostile = title.startswith(("hostile", "IP"))
        assert values["refused"] == (values["tried"] if hostile else 0), title
    made = FIGURES["archives"](options)
    for title in ("hostile archives", "wrong pictures"):
        assert made[title]["refused"] == made[title]["tried"] > 50
    assert made["hostile archives"]["left something behind"] == 0
    assert "| hostile archives | tried: " in table("archives", made)


def test_a_folder_of_files_of_others_is_counted_honestly(tmp_path: Path) -> None:
    write_one_tensor(tmp_path / "sound.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"GGUF")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "bad.pkl").write_bytes(b"\x80\x04N.")
    (tmp_path / "notes.md").write_text("not counted")
    found = corpus(tmp_path)
    assert (found["tried"], found["accepted"], found["which"]) == (3, 1, ["sound.safetensors"])
    assert refuses(check_file, tmp_path / "bad.safetensors").startswith("bad.safetensors is a GGUF model")


def test_published_figures_have_a_date_and_a_machine() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(results) == set(FIGURES)
    for name, one in results.items():
        assert one["measured"].keys() >= {"date", "commit", "system", "python", "processor"}, name
    assert results["checkpoints"]["figures"]["malicious checkpoints"]["accepted"] == 0
    assert results["canaries"]["figures"]["redacted"]["hits"] == 0
    assert results["sandbox"]["figures"]["forbidden, in the sandbox"]["worked"] == 0


def test_the_published_page_is_made_of_the_raw_results() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = security_page.PAGE.read_text(encoding="utf-8")
    assert page == security_page.page_of(results)
    assert all(f"`python benchmarks/security.py {name}`" in page for name in FIGURES)
    assert all(
        f"| `{row[0]}` | {row[1]} | {row[2]} |" in page for row in results["routes"]["figures"]["every route"]["rows"]
    )
