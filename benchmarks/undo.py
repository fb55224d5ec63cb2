"""How long edits of many captions and pictures take, and taking them back: `python benchmarks/undo.py`. Prints JSON.

Every caption of a dataset of 2,000 is changed at once, undone and redone, several times. Beside it: the same files
written plainly, one after the other, without a history and without any care for a power cut.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main(arguments: list[str]) -> int:
    """Measures and prints. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=2000, metavar="N", help="captions of the dataset (default: 2000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often (default: 5)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="safelight-undo-") as folder:
        print(json.dumps(measure(Path(folder), options.files, options.rounds), indent=1))
    return 0


def measure(folder: Path, num_files: int, rounds: int) -> dict[str, object]:
    """Seconds of each kind: the median and the slowest of the rounds."""
    from PIL import Image

    from trainer.dataset.studio import Studio
    from trainer.workspace import Workspace

    studio = Studio(Workspace.open(folder / "workspace"))
    dataset = studio.create("many")
    picture = folder / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    names = [f"{number:05d}.png" for number in range(num_files)]
    for name in names:
        (dataset.path / name).write_bytes(picture.read_bytes())
    dataset.set_captions("first", {name: f"a caption of {name}, with some tags, as they are" for name in names})
    before = _bytes(dataset.path)
    times: dict[str, list[float]] = {"edit": [], "undo": [], "redo": []}
    times |= {"removal of all pictures": [], "undo of the removal": [], "plain writes": []}
    for turn in range(rounds):
        texts = {name: f"turn {turn}, another caption of {name}, with some tags" for name in names}

        def edit(texts: dict[str, str] = texts) -> object:
            return dataset.set_captions("all", texts)

        times["edit"].append(_seconds(edit))
        times["undo"].append(_seconds(dataset.history.undo))
        assert _bytes(dataset.path) == before, "undo has to give the same bytes"
        times["redo"].append(_seconds(dataset.history.redo))
        dataset.history.undo()
        times["removal of all pictures"].append(_seconds(lambda: dataset.remove_pictures("none", names)))
        times["undo of the removal"].append(_seconds(dataset.history.undo))
        plain = folder / f"plain-{turn}"
        plain.mkdir()
        times["plain writes"].append(_seconds(lambda texts=texts, plain=plain: _write(plain, texts)))  # type: ignore[misc]
    return {
        "files": num_files,
        "rounds": rounds,
        "seconds": {
            name: {"median": round(statistics.median(values), 3), "slowest": round(max(values), 3)}
            for name, values in times.items()
        },
    }


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.txt")}


def _write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).with_suffix(".txt").write_text(text)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
