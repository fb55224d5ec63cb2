"""Networks that enlarge pictures, in the ONNX format: files that a user puts into the workspace's folder `upscalers`.

Any network fits that takes pictures in RGB from 0 to 1 and answers with the same ones 2, 3, 4 or 8 times as large, as
exported Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833), SwinIR or SPAN models do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from numpy.typing import NDArray
from PIL import Image

from security.errors import RefusedFile, SafelightError
from security.images import to_rgb
from security.onnx import read_onnx
from security.roots import Root
from security.sandbox import confine_thread
from trainer.dataset.pieces import Size
from trainer.tagging.onnx_session import OnnxNetwork
from trainer.workspace import Workspace

FOLDER = "upscalers"
SUFFIX = ".onnx"
TILE = 192
"""Side in pixels of what the network sees at once: a whole picture would need gigabytes."""
RIM = 16
"""Pixels around a tile that it sees, too, and that are cut off again, so that tiles have no seams."""
FACTORS = (2, 3, 4, 8)
MAX_ROUNDS = 3
FloatArray = NDArray[numpy.float32]


def list_upscalers(workspace: Workspace) -> list[str]:
    """Names of the networks that are there, without their ending."""
    folder = workspace.path / FOLDER
    return sorted(path.stem for path in folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def open_upscaler(workspace: Workspace, name: str) -> Upscaler:
    """The network of that name. Raises SafelightError if it is not there or can't enlarge."""
    known = list_upscalers(workspace)
    if name not in known:
        there = f"There are: {', '.join(known)}." if known else f"Put a file such as {name[:80]}{SUFFIX} there."
        raise SafelightError(f"There is no upscaler {name[:80]!r} in the workspace's folder {FOLDER}. {there}")
    return Upscaler(Root(workspace.path / FOLDER).known_child(f"{name}{SUFFIX}"), name)


class Upscaler:
    """One network on a thread of its own, which can reach nothing but the network's file. Close it at the end."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._thread = ThreadPoolExecutor(1, "safelight-upscaler", initializer=self._confine)
        try:
            self._network = self._thread.submit(self._open).result()
            self.factor = self._thread.submit(self._measured_factor).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def __call__(self, image: Image.Image, size: Size) -> Image.Image:
        """The picture at a larger size in pixels; what the network makes too large is shrunk by Lanczos."""
        return self._thread.submit(self._enlarged, image, size).result()

    def close(self) -> None:
        """Ends the thread and lets go of the memory."""
        self._thread.submit(self._network.close).result()
        self._thread.shutdown()

    def _confine(self) -> None:
        confine_thread(read=[self._path.parent], write=[])

    def _open(self) -> OnnxNetwork:
        digest = hashlib.sha256(read_onnx(self._path)).hexdigest()
        network = OnnxNetwork.open(self._path, digest, title=self._name)
        wanted = network.input
        if wanted.dtype == numpy.uint8 or not wanted.channels_first:
            raise RefusedFile(f"{self._name} does not take pictures as numbers from 0 to 1, so it is no upscaler.")
        return network

    def _measured_factor(self) -> int:
        side = self._network.input.height or 32
        answer = self._run(numpy.full((3, side, self._network.input.width or side), 0.5, numpy.float32))
        factor = answer.shape[1] // side
        if factor not in FACTORS or answer.shape[1:] != (side * factor, (self._network.input.width or side) * factor):
            raise RefusedFile(f"{self._name} answers {answer.shape[1:]} pixels for {side}: it is no upscaler.")
        return factor

    def _run(self, pixels: FloatArray) -> FloatArray:
        """(3, H, W) from 0 to 1 -> (3, factor * H, factor * W)."""
        answers = [one for one in self._network.run(pixels[None]) if one.ndim == 4 and one.shape[1] == 3]
        if not answers or not numpy.isfinite(answers[0]).all():
            raise RefusedFile(f"{self._name} does not answer with a picture, so it is no upscaler.")
        return numpy.asarray(answers[0][0], dtype=numpy.float32)

    def _enlarged(self, image: Image.Image, size: Size) -> Image.Image:
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        rgb = image.convert("RGBA").convert("RGB") if alpha is not None else to_rgb(image)
        for _ in range(MAX_ROUNDS):
            if rgb.width >= size[0] and rgb.height >= size[1]:
                break
            rgb = self._once(rgb)
        large = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        if alpha is not None:
            large.putalpha(alpha.resize(size, Image.Resampling.BICUBIC))
        return large

    def _once(self, rgb: Image.Image) -> Image.Image:
        pixels = numpy.asarray(rgb, dtype=numpy.float32).transpose(2, 0, 1) / 255
        height, width = pixels.shape[1:]
        factor = self.factor
        result = numpy.empty((height * factor, width * factor, 3), numpy.uint8)
        tall, wide = self._network.input.height or TILE + 2 * RIM, self._network.input.width or TILE + 2 * RIM
        padded = numpy.pad(pixels, ((0, 0), (RIM, RIM + tall), (RIM, RIM + wide)), mode="edge")
        for top in _steps(height, tall - 2 * RIM):
            for left in _steps(width, wide - 2 * RIM):
                answer = self._run(padded[:, top : top + tall, left : left + wide])
                inner = answer[:, RIM * factor : (tall - RIM) * factor, RIM * factor : (wide - RIM) * factor]
                bottom, right = min(height, top + tall - 2 * RIM), min(width, left + wide - 2 * RIM)
                part = inner[:, : (bottom - top) * factor, : (right - left) * factor]
                eight_bits = (part.clip(0, 1) * 255 + 0.5).astype(numpy.uint8)
                result[top * factor : bottom * factor, left * factor : right * factor] = eight_bits.transpose(1, 2, 0)
        return Image.fromarray(result)


def _steps(length: int, step: int) -> Iterator[int]:
    return iter(range(0, length, step))
