"""Log records without secrets, and without control characters that could forge lines or steer a terminal."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from security.redaction import redact, visible, visible_lines


class RedactingFormatter(logging.Formatter):
    """Redacts the final text: message, exception and stack. Further lines are indented, so none can pass for a record."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return redact(visible_lines(text)).replace("\n", "\n    ")


def redacting_factory(make: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    """A log record factory whose records carry no secret, whichever handler and formatter gets them."""

    def make_record(*args: Any, **keywords: Any) -> logging.LogRecord:
        record = make(*args, **keywords)
        _clean(record)
        return record

    return make_record


def _clean(record: logging.LogRecord) -> None:
    if isinstance(record.args, tuple):
        record.args = tuple(_clean_argument(argument) for argument in record.args)
    elif record.args:
        record.args = {name: _clean_argument(argument) for name, argument in record.args.items()}
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):  # logging itself reports a message that does not fit its arguments
        message = ""
    if redact(message) != message:
        record.msg, record.args = redact(message), None
    if record.exc_info and record.exc_info[0] is not None:
        # Formatters take this text when it is there, instead of making one of the exception.
        record.exc_text = redact(visible_lines("".join(traceback.format_exception(*record.exc_info)).rstrip("\n")))
    if record.stack_info:
        record.stack_info = redact(record.stack_info)


def _clean_argument(argument: object) -> object:
    if isinstance(argument, bytes):
        argument = argument.decode("latin-1")
    if isinstance(argument, str | BaseException):
        text = redact(visible(str(argument)))
        return argument if text == str(argument) else text
    return argument
