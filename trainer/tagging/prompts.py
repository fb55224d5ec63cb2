"""Ready-made prompts for captioners, by how each kind of network takes one."""

from __future__ import annotations

from trainer.tagging.base import TaggerRow
from trainer.tagging.captioners import KINDS, Asking

TASK_TITLES = {
    "<CAPTION>": "One sentence",
    "<DETAILED_CAPTION>": "Two or three sentences",
    "<MORE_DETAILED_CAPTION>": "A paragraph",
}
READY: dict[Asking, tuple[tuple[str, str], ...]] = {
    "beginning": (("A photo", "a photo of"), ("A drawing", "a drawing of"), ("A painting", "a painting of")),
    "question": (("What is to be seen", "Question: What is in the picture? Answer:"),),
    "chat": (
        ("One sentence", "Describe this picture in one sentence. Write only the sentence."),
        (
            "Tags",
            "List what is in this picture as short tags with commas between them, the most important first. Write only "
            "the tags.",
        ),
        (
            "For a style: what is shown, not how",
            "Describe what this picture shows in a few sentences: subject, pose, clothing, surroundings. Do not mention "
            "the style, the technique or the medium. Write only the description.",
        ),
        (
            "For a character: all but the looks",
            "Describe this picture in a few sentences: clothing, pose, expression, surroundings, light, style. Do not "
            "describe the face, the hair or the body of the person. Write only the description.",
        ),
    ),
    "task": (),
}
"""Title and prompt. What a caption does not name is what a LoRA learns by itself, hence the last two."""


def ready_prompts(row: TaggerRow) -> list[tuple[str, str]]:
    """Title and prompt of what a captioner may be asked; its usual prompt first. Empty for one that takes none."""
    kind = KINDS.get(str(row.settings.get("kind", "")))
    if kind is None or not row.takes_prompt:
        return []
    usual = str(row.settings.get("prompt", ""))
    if tasks := row.settings.get("tasks"):
        titled = [(TASK_TITLES.get(task, task), task) for task in tasks]
        return sorted(titled, key=lambda one: one[1] != usual)
    return [("Its usual prompt" if usual else "No prompt", usual), *READY[kind.asking]]
