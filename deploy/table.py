"""Tables for people: columns that line up, colour on a terminal only."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal, TextIO

import msgspec

from xnai.deploy.environment import wants_colour

Tone = Literal["plain", "good", "warning", "bad", "dim"]
_CODES: dict[Tone, str] = {"good": "32", "warning": "33", "bad": "31", "dim": "2"}
GAP = "  "
_NARROWEST = 8  # of the last column, where the others leave less on the terminal
Line = list[tuple[str, Tone]]
"""Texts, each with its tone."""


class Cell(msgspec.Struct, frozen=True):
    """A value that has a colour on a terminal."""

    value: object
    tone: Tone = "plain"


def table(rows: Iterable[Sequence[object]], columns: Sequence[str], stream: TextIO) -> None:
    """Print `rows` under the heads `columns`, to people.

    A value is text, a number (to the right), None (a dash), or a `Cell` of these; what could steer a terminal
    is shown instead of sent. On a terminal the last column ends at its edge.

    Raises:
        ValueError: a row has more or fewer values than there are columns.
    """
    edge = shutil.get_terminal_size().columns if stream.isatty() else None
    for line in laid_out(rows, columns, edge):
        print(*(paint(text, tone, stream) for text, tone in line), sep=GAP, file=stream)


def laid_out(rows: Iterable[Sequence[object]], columns: Sequence[str], edge: int | None) -> list[Line]:
    """The lines of a table, its heads first, each as its columns, between which a GAP belongs.

    The last column ends at `edge`. Raises as `table`.
    """
    cells = [[each if isinstance(each, Cell) else Cell(each) for each in row] for row in rows]
    texts = [[shown(cell.value) for cell in row] for row in cells]
    widths = [max(map(width_of, column)) for column in zip(columns, *texts, strict=True)]
    right = [_is_numeric([row[place].value for row in cells]) for place in range(len(columns))]
    if edge is not None:
        room = edge - sum(widths[:-1]) - len(GAP) * (len(widths) - 1)
        widths[-1] = min(widths[-1], max(room, _NARROWEST))
    lines: list[tuple[Sequence[str], Sequence[Tone]]] = [(columns, ["dim"] * len(columns))]
    lines += [(text, [cell.tone for cell in row]) for text, row in zip(texts, cells, strict=True)]
    found = []
    for line, tones in lines:
        parts = [fit(text, width, right=to) for text, width, to in zip(line, widths, right, strict=True)]
        if not right[-1]:
            parts[-1] = parts[-1].rstrip()
        found.append(list(zip(parts, tones, strict=True)))
    return found


def paint(text: str, tone: Tone, stream: TextIO) -> str:
    """`text` in the colour of a tone, where `stream` is a terminal that wants colours."""
    code = _CODES.get(tone)
    return f"\x1b[{code}m{text}\x1b[0m" if code and wants_colour(stream) else text


def shown(value: object) -> str:
    """As text that cannot steer a terminal; a dash for None."""
    if value is None:
        return "-"
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(value))


def _is_numeric(values: Sequence[object]) -> bool:
    numbers = [isinstance(value, (int, float)) for value in values if value is not None]
    return bool(numbers) and all(numbers)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """`text` in exactly `width` columns of a terminal."""
    if width_of(text) > width:
        while width_of(text) >= width:
            text = text[:-1]
        text += "…"
    space = " " * (width - width_of(text))
    return space + text if right else text + space


def width_of(text: str) -> int:
    """How many columns of a terminal it takes: two for a wide letter, none for one that joins the last."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )
