"""The faults of what a user or a visitor handed in. The message is written for that person.

SafelightError (a ValueError)
├── RefusedName      a name that cannot be a file or folder name everywhere
├── RefusedPath      a path outside of where the program may read or write
├── RefusedFile      a weight file, picture or model folder whose content is not what it must be
├── RefusedConfig    a configuration text, password or environment that breaks a rule
├── RefusedRequest   an HTTP request that the page does not answer; has `status`
├── RefusedUrl       an address that the program does not connect to
├── FailedDownload   a connection or transfer that broke, or whose content is not what was announced
│   ├── Interrupted  a connection that broke or a hub that was busy; worth another try
│   └── NeedsLogin   the hub wants a token, or that its owner accepts the model's terms; has `link`
├── Cancelled        the user ended a download
└── FailedCommand    a child process that could not start, failed or took too long
"""

from __future__ import annotations


class SafelightError(ValueError):
    """Something the user can put right. The message says what is wrong, with the value, and what to do."""


class RefusedName(SafelightError):
    """A name that cannot be a file or folder name everywhere."""


class RefusedPath(SafelightError):
    """A path outside of where the program may read or write, or that is not what it must be."""


class RefusedFile(SafelightError):
    """A file or model folder whose content is not what it must be."""


class RefusedConfig(SafelightError):
    """A configuration text, password or environment that breaks a rule."""


class RefusedRequest(SafelightError):
    """An HTTP request that the page does not answer. `status` is the HTTP status code to answer with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RefusedUrl(SafelightError):
    """An address that the program does not connect to."""


class FailedDownload(SafelightError):
    """A connection or transfer that broke, or whose content is not what was announced."""


class Interrupted(FailedDownload):
    """A connection that broke or a hub that was busy. `retry_after`: seconds that the hub asked to wait, or None."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NeedsLogin(FailedDownload):
    """The hub wants a token, or that its owner accepts the model's terms. `link` is the page where that is done."""

    def __init__(self, message: str, link: str) -> None:
        super().__init__(message)
        self.link = link


class Cancelled(SafelightError):
    """The user ended a download."""


class FailedCommand(SafelightError):
    """A child process that could not start, failed or took too long."""
