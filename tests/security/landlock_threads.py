"""A thread on which no sandbox can be had, for tests of what happens then: the kernel stacks sixteen and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from security.landlock import Access, Rule, restrict_thread

KERNEL_LAYERS = 16


def in_full_thread(work: Callable[[], None]) -> None:
    """Runs `work` on a new thread that has every right but that of a further sandbox. Raises what `work` raised."""
    failed: list[BaseException] = []
    everything = Access(0)
    for right in Access:
        everything |= right

    def run() -> None:
        try:
            for _ in range(KERNEL_LAYERS):
                restrict_thread([Rule(Path("/"), everything)])
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below, on the test's thread
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
