"""The contact sheet: samples of the base above those of the LoRA, with their prompts underneath."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from security.errors import SafelightError
from security.images import open_image, to_rgb
from security.roots import Root
from trainer.events import SampleSaved

CELL = 128
"""Side in pixels of one picture on the sheet."""
GAP = 8
MARGIN = 90
"""Width in pixels of the column that says "base" and "LoRA"."""
MAX_COLUMNS = 6
TEXT_LINES = 3
LINE_HEIGHT = 15
FONT_SIZE = 12


def contact_sheet(run_path: Path, samples: Sequence[SampleSaved]) -> Image.Image:
    """Draws the first and the last samples of a run on one picture. Raises SafelightError when there are none of both."""
    steps = sorted({sample.step for sample in samples})
    if len(steps) < 2:
        raise SafelightError("This run has no samples from before and after training to compare.")
    before, after = ({s.index: s for s in samples if s.step == step} for step in (steps[0], steps[-1]))
    shared = sorted(before.keys() & after.keys())
    num_bands = -(-len(shared) // MAX_COLUMNS)
    columns = -(-len(shared) // num_bands)  # 8 pictures are two rows of 4, not 6 and 2
    bands = [shared[start : start + columns] for start in range(0, len(shared), columns)]
    band_height = 2 * (CELL + GAP) + TEXT_LINES * LINE_HEIGHT + GAP
    width = MARGIN + columns * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, GAP + len(bands) * band_height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    root = Root(run_path)
    for band, indices in enumerate(bands):
        top = GAP + band * band_height
        for row, (label, row_samples) in enumerate((("base", before), (f"LoRA,\nstep {steps[-1]}", after))):
            y = top + row * (CELL + GAP)
            draw.text((GAP, y + CELL // 2 - LINE_HEIGHT), label, fill="black", font=font)
            for column, index in enumerate(indices):
                picture = to_rgb(open_image(root.child(row_samples[index].path)))
                sheet.paste(picture.resize((CELL, CELL), Image.Resampling.LANCZOS), (MARGIN + column * (CELL + GAP), y))
        for column, index in enumerate(indices):
            lines = textwrap.wrap(after[index].prompt, width=CELL // 6)[:TEXT_LINES]
            where = (MARGIN + column * (CELL + GAP), top + 2 * (CELL + GAP))
            draw.multiline_text(where, "\n".join(lines), fill="black", font=font)
    return sheet
