"""What a tagger answers about the pictures of a dataset, to tell which it takes for the same; kept by content."""

from __future__ import annotations

import json
from collections.abc import Mapping

from security.errors import RefusedFile
from trainer.dataset.looks import looks_of
from trainer.dataset.similar import Pair, find_alike
from trainer.dataset.studio import Dataset
from trainer.tagging.base import Category, Tag, TaggingOptions
from trainer.tagging.run import Crew
from trainer.tagging.shelf import get_tagger, tagger_files
from trainer.tasks import TaskControl
from trainer.workspace import Workspace

LEAST_SCORE = 0.02
"""Tags that the network is less sure of say nothing."""
VERSION = 1


def pairs_by_tagger(
    workspace: Workspace, dataset: Dataset, hashes: Mapping[str, str], tagger: str, control: TaskControl
) -> list[Pair]:
    """Pairs of pictures (name -> sha256) that a tagger of the workspace answers alike about.

    Raises SafelightError for a tagger that is not here or writes sentences, Cancelled when `control` says so.
    """
    row = get_tagger(workspace, tagger)
    if row.kind != "tags":
        raise RefusedFile(f"{row.title} writes sentences, which can't be compared. Choose a tagger.")
    files = tagger_files(workspace, row)
    looks = looks_of(workspace)
    network = "".join(sorted(files.sha256.values()))
    keys = {name: f"tags {VERSION} {network} {content}" for name, content in hashes.items()}
    kept = {name: looks.get(key) for name, key in keys.items()}
    answers = {name: json.loads(data) for name, data in kept.items() if data is not None}
    missing = [name for name in hashes if name not in answers]
    if missing:
        options = TaggingOptions(models=(row.name,), general_threshold=LEAST_SCORE, character_threshold=LEAST_SCORE)
        control.progress(0, len(missing), f"loading {row.title}")
        with Crew([(row, files)], options) as crew:
            done = 0
            for batch in crew.looks([(name, dataset.path / name) for name in missing], control.cancelled):
                for look in batch:
                    done += 1
                    if not look.fault and not isinstance(look.descriptions[0], str):
                        answers[look.name] = _scores(look.descriptions[0])
                        looks.put(keys[look.name], json.dumps(answers[look.name]).encode())
                control.progress(done, len(missing), f"{row.title} looks at pictures")
        control.raise_if_cancelled()
    tags = sorted({tag for scores in answers.values() for tag in scores})
    return find_alike({name: [scores.get(tag, 0.0) for tag in tags] for name, scores in answers.items()})


def _scores(tags: tuple[Tag, ...]) -> dict[str, float]:
    """Ratings are left out: they are there for every picture, and make all alike."""
    return {tag.name: round(tag.score, 4) for tag in tags if tag.category is not Category.RATING}
