"""Small copies of pictures for the page: WebP files in the cache, made at import or when they are first asked for."""

from __future__ import annotations

import secrets
from pathlib import Path

from security.images import thumbnail_file
from security.roots import Root
from trainer.dataset.facts import PictureFacts, facts_of
from trainer.workspace import Workspace

THUMBNAIL_SIDE = 256
"""Longest side in pixels: sharp on a card of 128 on screens of double density."""


def thumbnail_of(workspace: Workspace, picture: Path) -> Path:
    """A WebP copy of at most 256 pixels a side, upright; the picture itself when it is a still one of that size.

    Made once per content, whatever the picture is called. Raises RefusedFile for what is no picture.
    """
    facts = facts_of(workspace, picture)
    if max(facts.width, facts.height) <= THUMBNAIL_SIDE and facts.num_frames == 1:
        return picture
    cached = _place(workspace, facts)
    if not cached.is_file():
        keep_thumbnail(workspace, facts, thumbnail_file(picture, THUMBNAIL_SIDE))
    return cached


def keep_thumbnail(workspace: Workspace, facts: PictureFacts, data: bytes) -> None:
    """Puts the thumbnail of a picture in its place. `data` is the WebP file; an empty one is not kept."""
    if not data:
        return
    place = _place(workspace, facts)
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_suffix(f".{secrets.token_hex(4)}.tmp")  # two viewers may make the same one at once
    fresh.write_bytes(data)
    fresh.replace(place)


def _place(workspace: Workspace, facts: PictureFacts) -> Path:
    return Root(workspace.cache_dir).child("thumbnails", facts.sha256[:2], f"{facts.sha256[2:34]}.webp")
