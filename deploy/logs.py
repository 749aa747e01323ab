"""Log records as lines: one each, with the facts in `extra` behind the message as key=value."""

from __future__ import annotations

import logging
import time

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


def log_to_stderr(level: int) -> None:
    """Send the records of this process to stderr, those below `level` to nowhere."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
