"""Several machines begin at one state: the first one's settings hold, and the others get its checkpoint."""

from __future__ import annotations

import json

from security.errors import SafelightError
from security.roots import Root
from trainer.checkpoints import FILES, STEP_FOLDER, newest_good_checkpoint
from trainer.config.changes import flat_settings
from trainer.config.schema import TrainConfig
from trainer.rebuild import PLACES
from trainer.runs import RunFolder
from trainer.workers import Workers

_LENGTH_BYTES = 8


def take_over_state(workers: Workers, folder: RunFolder, config: TrainConfig) -> None:
    """Compares the settings, then writes the first machine's checkpoint and list of pictures into this machine's folder.

    Raises SafelightError, on all machines, for settings that differ in more than where things lie.
    """
    settings = {name: json.dumps(value) for name, value in flat_settings(config).items() if name not in PLACES}
    if different := workers.differing(settings):
        raise SafelightError(
            f"The machines of this run have other settings: {', '.join(different)}. Start all of them with the same file and "
            "flags."
        )
    files = unpacked(workers.told(packed(_state(folder) if workers.is_first else {})))
    if workers.is_first_here and not workers.is_first:
        root = Root(folder.path)
        if folder.checkpoints_dir.exists():
            root.remove_tree(folder.checkpoints_dir)
        for name, data in files.items():
            path = folder.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            root.write_bytes_atomic(path, data)
    workers.wait_for_all()


def _state(folder: RunFolder) -> dict[str, bytes]:
    """The files that a run goes on from, by their names in its folder."""
    paths = [folder.manifest_path] if folder.manifest_path.exists() else []
    checkpoint, _ = newest_good_checkpoint(folder.checkpoints_dir)
    if checkpoint is not None:
        place = folder.checkpoints_dir / f"step-{checkpoint.step:08d}"
        paths += [place / name for name in (*FILES, "manifest.json")]
    return {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in paths}


def packed(files: dict[str, bytes]) -> bytes:
    """Files as one message: the length of a list of names and sizes, the list as JSON, the contents."""
    listed = json.dumps([[name, len(data)] for name, data in files.items()]).encode()
    return b"".join([len(listed).to_bytes(_LENGTH_BYTES, "little"), listed, *files.values()])


def unpacked(message: bytes) -> dict[str, bytes]:
    """The reverse of `packed`. Raises SafelightError for a name that no run has."""
    begin = _LENGTH_BYTES + int.from_bytes(message[:_LENGTH_BYTES], "little")
    files = {}
    for name, size in json.loads(message[_LENGTH_BYTES:begin]):
        if not _is_known(name):
            raise SafelightError(f"Machine 0 sent a file of the unknown name {name!r}.")
        files[name] = message[begin : begin + size]
        begin += size
    return files


def _is_known(name: str) -> bool:
    place, _, file = name.rpartition("/")
    folder, _, step = place.partition("/")
    if not place:
        return name == "dataset.json"
    return folder == "checkpoints" and bool(STEP_FOLDER.match(step)) and file in (*FILES, "manifest.json")
