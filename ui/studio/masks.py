"""The panel "Masks", and the painting in the viewer: what training looks at in a picture."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from PIL import Image

from trainer.dataset.masks import (
    MAX_PAINTED_BYTES,
    MaskMode,
    invert_masks,
    mask_file,
    masks_by_network,
    masks_from_alpha,
    read_mask,
    save_painted,
)
from trainer.models.jobfiles import Download
from trainer.models.text import gigabytes
from trainer.tagging.base import TaggerRow
from trainer.tagging.cutouts import cutouts, find_cutout
from trainer.tagging.onnx_session import gpu_is_usable
from trainer.tagging.shelf import is_here
from trainer.tasks import TaskControl
from ui.messages import ShownError, text_of
from ui.model_views import download_row
from ui.services import Services
from ui.studio.asked import dataset_of, names_of
from ui.studio.networks import NetworkDesk
from ui.studio.panels import Answer, Panel

LANE, KIND = "compute", "mask"
ALPHA = "alpha"
"""The source of masks that is no network: the transparency of the pictures themselves."""
SENT_SIDE = 1024
"""Longest side in pixels of the mask that the page paints on. What comes back is scaled to the picture; training looks at
eighths of its pixels anyway."""


class MaskDesk:
    """Answers the panel's and the viewer's script."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.networks = NetworkDesk(services, find_cutout, KIND, "Masks are being made.")

    def functions(self) -> Sequence[Answer]:
        """What the scripts call."""
        masks: list[Answer] = [self.get_mask, self.save_mask, self.make_masks, self.invert, self.remove_masks]
        return [*masks, self.mask_networks, *self.networks.functions()]

    # ---- one picture ----

    def get_mask(self, argument: Any = None) -> dict[str, Any]:
        """The mask of a picture as PNG in base64, at a size to paint on; empty if there is none."""
        dataset = dataset_of(self.services, argument)
        picture = text_of(argument, "picture")
        dataset.path_of(picture)
        mask = read_mask(dataset, picture)
        if mask is None:
            return {"png": ""}
        mask.thumbnail((SENT_SIDE, SENT_SIDE), Image.Resampling.BILINEAR)
        return {"png": base64.b64encode(mask_file(mask)).decode()}

    def save_mask(self, argument: Any = None) -> dict[str, Any]:
        """Keeps what was painted; nothing painted out means no mask."""
        dataset = dataset_of(self.services, argument)
        picture = text_of(argument, "picture")
        before = dataset.revision
        save_painted(self.services.studio, dataset, picture, _painted(argument))
        has_mask = read_mask(dataset, picture) is not None
        return {"mask": has_mask, "before_revision": before, "revision": dataset.revision}

    # ---- many pictures ----

    def make_masks(self, argument: Any = None) -> dict[str, Any]:
        """Starts to make masks for the pictures of `names`, from transparency or by a network."""
        dataset = dataset_of(self.services, argument)
        dataset.refuse_builtin()
        names, source = names_of(argument, dataset), text_of(argument, "source")
        mode = MaskMode.REPLACE if argument.get("replace") is True else MaskMode.KEEP
        if source == ALPHA:
            return self._start(
                "Masks from transparency", dataset.name, lambda control: masks_from_alpha(dataset, names, mode, control)
            )
        row = find_cutout(source)
        if not is_here(self.services.workspace, row):
            raise ShownError(f"{row.title} is not on this machine yet. Press Download first.")
        self._refuse_busy_gpu()

        def work(control: TaskControl) -> str:
            self._refuse_busy_gpu()  # a run may have begun while this waited for its turn
            return masks_by_network(self.services.workspace, dataset, names, row, mode, control)

        return self._start(f"Masks by {row.title}", dataset.name, work)

    def invert(self, argument: Any = None) -> dict[str, Any]:
        """Starts to turn the masks of `names` round."""
        dataset = dataset_of(self.services, argument)
        dataset.refuse_builtin()
        names = self._masked(argument)
        return self._start("Inverting masks", dataset.name, lambda control: invert_masks(dataset, names, control))

    def remove_masks(self, argument: Any = None) -> dict[str, Any]:
        """Removes the masks of `names`; undo brings them back."""
        dataset = dataset_of(self.services, argument)
        names = self._masked(argument)
        dataset.set_masks("Remove masks", dict.fromkeys(names))
        return {"text": f"{len(names):,} mask{'' if len(names) == 1 else 's'} removed. Undo brings them back."}

    def _masked(self, argument: Any) -> list[str]:
        dataset = dataset_of(self.services, argument)
        masks = dataset.masks()
        names = [name for name in names_of(argument, dataset) if name in masks]
        if not names:
            raise ShownError("None of these pictures has a mask.")
        return names

    def _start(self, title: str, dataset: str, work: Any) -> dict[str, Any]:
        return {"task": self.services.studio.tasks.start(KIND, title, dataset, work, lane=LANE)}

    def _refuse_busy_gpu(self) -> None:
        run = self.services.jobs.active_run_id
        if run is not None and self.services.machine.facts().gpus and gpu_is_usable():
            raise ShownError(f"The run {run} trains on the GPU, which has no room for both. Wait for it.")

    # ---- the networks ----

    def mask_networks(self, _argument: Any = None) -> dict[str, Any]:
        """The networks, which of them are here, and what is being fetched."""
        downloads = {one.name: one for one in reversed(self.networks.downloads(cutouts()))}
        rows = [_network(row, self._is_here(row), downloads.get(row.name)) for row in cutouts().values()]
        return {"networks": rows, "fault": self.services.downloads.fault}

    def _is_here(self, row: TaggerRow) -> bool:
        return is_here(self.services.workspace, row)


def _network(row: TaggerRow, here: bool, download: Download | None) -> dict[str, Any]:
    return {
        "name": row.name,
        "title": row.title,
        "why": row.why,
        "size": gigabytes(row.num_bytes),
        "licence": row.licence,
        "source": row.source,
        "here": here,
        "download": download_row(download) if download is not None and not here else None,
    }


def _painted(argument: Any) -> bytes | None:
    """The PNG that the page sent, None if it painted nothing out. Raises ShownError for what is none."""
    text = argument.get("png") if isinstance(argument, dict) else None
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > MAX_PAINTED_BYTES * 4 // 3 + 4:
        raise ShownError("The page sent no mask, or one that is too large. Nothing was saved.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ShownError("The page sent no mask. Nothing was saved; reload the page.") from None


MASKS_PANEL = Panel("masks", lambda services: MaskDesk(services).functions())
