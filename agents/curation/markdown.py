"""Markdown kept as it is written: its headings and code are found, nothing is rewritten.

Follows the block rules of CommonMark 0.31 as far as headings need them: fenced code, comments and raw `<pre>`
hide what looks like a heading. A parser that builds the whole tree would be a dependency for four rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from xnai.agents.curation.outline import Extract, Heading, first_title

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_RAW = re.compile(r" {0,3}<(!--|pre|script|style)", re.IGNORECASE)
_NO_PARAGRAPH = re.compile(r" {4}|\t| {0,3}(>|[-*+] |\d{1,9}[.)] |[-*_=|]+[ \t]*$)")
_FRONT_KEY = re.compile(r"[\w.\"'-]+[ \t]*[:=]|#|\[")
_FRONT_TITLE = re.compile(r"^title[ \t]*[:=][ \t]*(.+)$", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")
_ATTRIBUTES = re.compile(r" ?\{[#.:][^{}]*\}$")
_FRONT_LIMIT = 20_000


class _Line(NamedTuple):
    start: int
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def extract_markdown(text: str) -> Extract:
    """Find headings and code in Markdown. YAML or TOML front matter is left out of the text. Never raises."""
    title, text = _without_front_matter(text)
    headings: list[Heading] = []
    blocks: list[tuple[int, int]] = []
    lines = _lines(text)
    above: _Line | None = None
    for line in lines:
        block = _block(line, lines)
        if block is not None:
            blocks.append(block)
            above = None
            continue
        heading = _atx(line) or _setext(above, line)
        if heading is not None:
            headings.append(heading)
        above = line if heading is None and line.text.strip() else None
    found = tuple(headings)
    return Extract(text=text, title=title or first_title(found), headings=found, blocks=tuple(blocks))


def _lines(text: str) -> Iterator[_Line]:
    start = 0
    for line in text.split("\n"):
        yield _Line(start, line)
        start += len(line) + 1


def _block(first: _Line, following: Iterator[_Line]) -> tuple[int, int] | None:
    """The span of the fenced or raw block that this line opens; its lines are consumed."""
    fence = _FENCE.match(first.text)
    raw = _RAW.match(first.text)
    if fence is not None:
        mark = fence[1]
        # A backtick in the info string makes it inline code (CommonMark 4.5).
        if mark[0] == "`" and "`" in first.text[fence.end() :]:
            return None
        closes = re.compile(rf" {{0,3}}{mark[0]}{{{len(mark)},}}[ \t]*$").match
    elif raw is not None:
        end = "-->" if raw[1] == "!--" else f"</{raw[1]}>"
        closes = re.compile(rf".*{re.escape(end)}", re.IGNORECASE).match
        if closes(first.text):
            return None
    else:
        return None
    last = first
    for last in following:
        if closes(last.text):
            break
    return first.start, last.end


def _atx(line: _Line) -> Heading | None:
    body = line.text.strip(" \t")
    level = len(body) - len(body.lstrip("#"))
    is_code = line.text.startswith(("    ", "\t"))
    if is_code or not 1 <= level <= 6 or body[level : level + 1] not in ("", " ", "\t"):
        return None
    title = body[level:].strip(" \t")
    opened = title.rstrip("#")
    if not opened or opened[-1] in " \t":
        title = opened
    return Heading(start=line.start, end=line.end, level=level, title=_plain(title))


def _setext(above: _Line | None, line: _Line) -> Heading | None:
    if above is None or _NO_PARAGRAPH.match(above.text):
        return None
    underline = _SETEXT.match(line.text)
    if underline is None:
        return None
    level = 1 if underline[1][0] == "=" else 2
    return Heading(start=above.start, end=line.end, level=level, title=_plain(above.text))


def _plain(title: str) -> str:
    """A heading without emphasis, code marks, link targets and attribute lists."""
    one_line = " ".join(title.split())  # first, so that no pattern walks along runs of blanks
    text = _LINK.sub(r"\1", _ATTRIBUTES.sub("", one_line))
    return text.replace("**", "").replace("__", "").replace("`", "")


def _without_front_matter(text: str) -> tuple[str | None, str]:
    """Its title and the text after it. A rule at the top is no front matter: a key has to follow."""
    mark = text[:4]
    if mark not in ("---\n", "+++\n") or not _FRONT_KEY.match(text, 4):
        return None, text
    last_line = re.compile(rf"^(?:{re.escape(mark[:3])}|\.\.\.)[ \t]*$\n?", re.MULTILINE)
    end = last_line.search(text, 4, _FRONT_LIMIT)
    if end is None:
        return None, text
    title = _FRONT_TITLE.search(text, 4, end.start())
    return (title[1].strip(" \t\"'") or None) if title else None, text[end.end() :]
