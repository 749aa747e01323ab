"""Log records as lines: one each, with the facts in `extra` behind the message as key=value."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """`2026-11-21T09:30:00.123Z WARNING xnai.bus.pull pulls anew agent=maths lane=normal`

    A traceback follows on lines of its own.
    """

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name in the standard library
        facts = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        line = super().formatMessage(record).replace("\n", " ")
        return line + "".join(f" {key}={_plain(value)}" for key, value in facts.items())


def _plain(value: object) -> str:
    """A fact without spaces or line ends in it, or in quotes."""
    text = str(value)
    return text if text.isprintable() and text and " " not in text else msgspec.json.encode(text).decode()


class LineHandler(logging.Handler):
    """Hands each record to `write` as text."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write
        self.setFormatter(LineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record))


def log_to(write: Callable[[str], None], level: int) -> None:
    """Send the records of this process to `write`, those below `level` to nowhere."""
    logging.basicConfig(level=level, handlers=[LineHandler(write)], force=True)
