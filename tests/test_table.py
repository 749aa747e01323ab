"""Tables for people: how they line up, and what a terminal is spared."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Sequence

import pytest

from xnai.deploy.table import Cell, table

COLUMNS = ("NAME", "DONE", "WHY")
ROWS = (("maths", 7, None), ("curation", 1234, "it rests"))


def printed(rows: Sequence[Sequence[object]]) -> list[str]:
    stream = io.StringIO()
    table(rows, COLUMNS, stream)
    return stream.getvalue().split("\n")


def on_a_terminal(rows: Sequence[Sequence[object]], columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal of so many columns gets; a few lines fit into its buffer."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with open(theirs, "w") as stream:
        table((*rows, ("end", 0, None)), COLUMNS, stream)
        stream.flush()
        got = b""
        while b"end" not in got:
            got += os.read(ours, 10_000)
    os.close(ours)
    return got.decode()


def test_columns_line_up_numbers_to_the_right_and_nothing_is_a_dash() -> None:
    assert printed(ROWS) == [
        "NAME      DONE  WHY",
        "maths        7  -",
        "curation  1234  it rests",
        "",
    ]


def test_without_rows_there_are_the_heads() -> None:
    assert printed(()) == ["NAME  DONE  WHY", ""]


def test_wide_and_joining_letters_take_the_room_that_they_take() -> None:
    lines = printed((("中文", 1, "a"), ("e\u0301", 2, "b"), ("plain", 3, "c")))
    assert lines[1:4] == ["中文      1  a", "e\u0301         2  b", "plain     3  c"]


def test_what_could_steer_a_terminal_is_shown() -> None:
    assert printed((("a", 1, "\x1b[2J\nboo\u202e"),))[1] == "a        1  \\x1b[2J\\nboo\\u202e"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        printed((("a", 1),))


def test_there_is_colour_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    rows = ((Cell("maths", "bad"), Cell(3, "good"), Cell(None)),)
    assert "\x1b" not in "".join(printed(rows))
    shown = on_a_terminal(rows, 80, monkeypatch)
    assert "\x1b[31mmaths\x1b[0m" in shown
    assert "\x1b[32m   3\x1b[0m" in shown


def test_the_last_column_ends_at_the_edge_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (("maths", 1, "a long reason " * 9),)
    last = on_a_terminal(rows, 40, monkeypatch).split("\r\n")[1]
    assert len(last) == 40
    assert last.endswith("…")
    assert printed(rows)[1].endswith("reason")


def test_who_wants_no_colour_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in on_a_terminal(((Cell("maths", "bad"), 1, None),), 80, monkeypatch)
