"""Runs a program as it is and times its optimizer steps: `python stopwatch.py RESULT STEPS WINDOW PROGRAM [ARGUMENTS]`.

Every program of a comparison is timed by this, in its own process and without a change to its files: by the hook that
torch calls after every optimizer step. After STEPS of them the figures are written to RESULT as JSON and the process
ends, whatever the program had in mind. On a GPU the clock is read after every WINDOW steps, when all work is done.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys
import threading
import time
from pathlib import Path
from typing import Any

RESULTS = 3
"""Exit code of a program that ended before its last step."""


class Stopwatch:
    """The times of some steps. `moments`: (steps done, seconds by the machine's own clock)."""

    def __init__(self, result: Path, steps: int, window: int) -> None:
        self.result, self.steps, self.window = result, steps, window
        self.moments: list[tuple[int, float]] = []
        self.done = 0
        self.complete = threading.Event()
        # The program's own thread may be locked out of the folder of the result: another one writes.
        threading.Thread(target=self._write_at_the_end, daemon=True).start()

    def step(self, *_: object) -> None:
        """Counts one step. torch calls it with the optimizer and its arguments."""
        import torch

        if self.complete.is_set():
            threading.Event().wait()  # the process ends here
        self.done += 1
        if self.done == 1 or self.done % self.window == 0:
            if torch.cuda.is_available() and torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.moments.append((self.done, time.monotonic()))
        if self.done == self.steps:
            self.complete.set()
            threading.Event().wait()

    def _write_at_the_end(self) -> None:
        self.complete.wait()
        figures = {"moments": self.moments, "peak_memory": peak_memory(), "peak_gpu_memory": peak_gpu_memory()}
        self.result.write_text(json.dumps(figures), encoding="utf-8")
        os._exit(0)


def peak_memory() -> int:
    """The most bytes of main memory that this process had at once; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def peak_gpu_memory() -> int:
    """The most bytes of the GPU's memory that torch held at once; 0 without a GPU."""
    import torch

    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() and torch.cuda.is_initialized() else 0


class AfterImport:
    """Finder that registers the stopwatch as soon as the program imports torch's optimizers, and not before."""

    module = "torch.optim.optimizer"

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The module's own spec, whose loader also registers."""
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_register(module: Any) -> None:
            load(module)
            module.register_optimizer_step_post_hook(self.watch.step)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def offer(folder: str) -> None:
    """Lets the program import what lies in a folder, once its libraries have seen that the real package is not there.

    They would use it for much more than the program does.
    """
    from diffusers.utils import import_utils
    from transformers.utils import is_torchvision_available

    assert not is_torchvision_available() and import_utils
    sys.path.insert(1, folder)


def main(arguments: list[str]) -> int:
    """Runs the program. Returns only when it ended too soon."""
    result, steps, window, program, *rest = arguments
    sys.meta_path.insert(0, AfterImport(Stopwatch(Path(result), int(steps), int(window))))
    sys.argv = [program, *rest]
    sys.path[0] = str(Path(program).resolve().parent)
    if folder := os.environ.get("STAND_IN"):
        offer(folder)
    code: object = 0
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        code = end.code
    sys.stderr.write(f"{program} ended before step {steps} (exit code {code}).\n")
    return RESULTS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
