"""One network in the ONNX format, run by onnxruntime: proven bytes in, arrays out, and no silent change of the device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from security.errors import RefusedFile, SafelightError
from security.onnx import check_onnx
from security.policy import OFFLINE_VARIABLES

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
MAX_SIDE = 4096
"""Largest side in pixels that a network may ask for; taggers take 448, background removal 1024."""
TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
_LOG_ERRORS = 3
_NUMBER_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


@dataclass(frozen=True)
class PictureInput:
    """What a network wants to be given: pictures of `height` x `width` pixels, 0 where it takes any size.

    `channels_first`: (B, 3, H, W), else (B, H, W, 3). `batch`: how many at once, 0 for any number.
    """

    name: str
    batch: int
    height: int
    width: int
    channels_first: bool
    dtype: Any


class OnnxNetwork:
    """A network that takes pictures. Make one with `OnnxNetwork.open`; not for two threads at once."""

    def __init__(self, session: Any, title: str, where: str) -> None:
        self.where = where
        self.input = picture_input(session.get_inputs(), title)
        self._session = session
        self._title = title

    @classmethod
    def open(cls, path: Path, sha256: str, device: str = "auto", *, title: str = "") -> OnnxNetwork:
        """Loads the network of a file that has to have this SHA-256. `device`: "auto", "cpu" or "cuda".

        Raises RefusedFile for a file that is not this one or not sound, SafelightError for a device that is not there.
        """
        onnxruntime = _runtime()
        title = title or path.name
        providers = wanted_providers(device, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _LOG_ERRORS
        options.intra_op_num_threads = num_threads()
        data = check_onnx(path, sha256)
        try:
            session = onnxruntime.InferenceSession(data, options, providers=providers)
        except _faults() as error:
            raise RefusedFile(f"onnxruntime can't open the network of {title}: {_first_line(error)}") from None
        used = session.get_providers()[0]
        if device == "cuda" and used != CUDA:
            raise SafelightError(
                f"The GPU could not be used for {title}: onnxruntime fell back to the CPU, most often because its build "
                "needs another CUDA version. Choose the CPU, or repair the driver."
            )
        return cls(session, title, "GPU" if used == CUDA else "CPU")

    def run(self, pictures: np.ndarray) -> list[np.ndarray]:
        """Every output for a batch of pictures, which have the layout of `input`. A fixed batch is filled up and cut again.

        Raises SafelightError when the network cannot compute it, as when memory runs out.
        """
        size = self.input.batch or len(pictures)
        parts = []
        for start in range(0, len(pictures), size):
            part = pictures[start : start + size]
            if len(part) < size:
                part = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
            try:
                parts.append(self._session.run(None, {self.input.name: part.astype(self.input.dtype, copy=False)}))
            except _faults() as error:
                raise SafelightError(
                    f"{self._title} could not be computed on the {self.where}: {_first_line(error)} A smaller batch needs "
                    "less memory."
                ) from None
        if len(parts) == 1:
            return [output[: len(pictures)] for output in parts[0]]
        return [np.concatenate(outputs)[: len(pictures)] for outputs in zip(*parts, strict=True)]

    def close(self) -> None:
        """Lets go of the memory."""
        self._session = None


def wanted_providers(device: str, available: Sequence[str]) -> list[str]:
    """The providers to ask for. Raises SafelightError when the GPU is asked for and this onnxruntime has none."""
    if device == "cpu" or (device == "auto" and CUDA not in available):
        return [CPU]
    if CUDA not in available:
        raise SafelightError(
            "This installation's onnxruntime runs on the CPU only, so taggers can't use the GPU. Choose the CPU, or install "
            "the package onnxruntime-gpu of the same version in place of onnxruntime."
        )
    return [CUDA, CPU]


def gpu_is_usable() -> bool:
    """Whether `auto` will take a GPU. Imports onnxruntime, which takes a tenth of a second."""
    return CUDA in _runtime().get_available_providers()


def num_threads() -> int:
    """How many threads to compute with: the processor's cores, as far as this process may use them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def picture_input(inputs: Sequence[Any], title: str) -> PictureInput:
    """Reads what the network wants from its own description. Raises RefusedFile if that is not one batch of pictures."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _NUMBER_TYPES:
        wanted = ", ".join(f"{one.name} {one.shape} {one.type}" for one in inputs)[:200]
        raise RefusedFile(f"The network of {title} does not take pictures: it wants {wanted or 'nothing'}.")
    batch, *sides = (side if isinstance(side, int) and side > 0 else 0 for side in inputs[0].shape)
    channels_first = sides[0] == 3
    height, width, channels = (sides[1], sides[2], sides[0]) if channels_first else (sides[0], sides[1], sides[2])
    if channels != 3 or max(height, width) > MAX_SIDE:
        raise RefusedFile(f"The network of {title} wants {inputs[0].shape}, which are no pictures in colour.")
    return PictureInput(inputs[0].name, batch, height, width, channels_first, _NUMBER_TYPES[inputs[0].type])


def _runtime() -> Any:
    """onnxruntime, told before its import to report nothing: by default it sends its maker an event for each network."""
    os.environ[TELEMETRY_SWITCH] = OFFLINE_VARIABLES[TELEMETRY_SWITCH]
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _faults() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; it names no common class of its own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    named = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NotImplemented",
        "RuntimeException",
        "EPFail",
    )
    return (*(getattr(state, name) for name in named), ValueError)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
