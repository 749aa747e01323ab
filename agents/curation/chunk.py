"""Cut a document into the passages that are embedded, found and cited.

Every chunk is a verbatim span of the document's text; chunks stand in order, never overlap, and together
hold all that is not blank. They follow the structure: a heading always begins a new one, and long sections
are cut at the best place near equal shares: between paragraphs, else sentences, else lines, else words.

There is no overlap between neighbours: the heading path is embedded with each chunk (`prepare.py`) and gives
the context for which overlap is used elsewhere, and a span that is stored once is found and cited once.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import msgspec

from xnai.agents.curation.documents import Document

RECIPE = 1
"""The number of this way to extract and cut. To be raised when an unchanged file gives other chunks."""

LIMIT = 960
"""The weight of the largest chunk with its headings: about 900 characters of English prose."""

# The embedding model reads 256 word pieces. A piece is about four letters of English, but every punctuation
# mark is one by itself and so is nearly every character of other scripts: those weigh four.
_HEAVY = re.compile(r"[^\w\s]|_|[^\x00-\u024f]")
_EXTRA = 3

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]\s*")
_LINE = re.compile(r"\n")
_WORD = re.compile(r"\s+")
_BLANKS = re.compile(r"\s*")
_TITLE = 200  # what is kept of a heading that is a whole paragraph
_JOINERS = frozenset("\u200d\ufe0e\ufe0f")


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A span of a document: `document.text[chunk.start:chunk.end] == chunk.text`, always.

    Attributes:
        source: of its document.
        heading: the headings above it, `Guide > Install`; empty where there are none.
        start: offset in code points of its first character, which is not blank.
        end: offset after its last character, which is not blank either.
        text: what stands there, verbatim.
        sha256: of the text in UTF-8.
        ordinal: 0 for the first of its document.
    """

    source: str
    heading: str
    start: int
    end: int
    text: str
    sha256: str
    ordinal: int


class _Section(msgspec.Struct, frozen=True):
    start: int
    end: int
    heading: str


def chunks(document: Document) -> list[Chunk]:
    """Cut a document. The same document always gives the same chunks; a blank one gives none."""
    text = document.text
    blocks = [(start, end) for start, end in document.blocks if weight(text[start:end]) <= LIMIT]
    found: list[Chunk] = []
    for section in _sections(document):
        for start, end in _spans(text, section, blocks):
            chunk = Chunk(
                source=document.source,
                heading=section.heading,
                start=start,
                end=end,
                text=text[start:end],
                sha256=hashlib.sha256(text[start:end].encode("utf-8", "surrogatepass")).hexdigest(),
                ordinal=len(found),
            )
            found.append(chunk)
    return found


def weight(text: str) -> int:
    """How much of the embedding model's window a text takes, in characters of English prose."""
    return len(text) + _EXTRA * sum(1 for _ in _HEAVY.finditer(text))


def _sections(document: Document) -> Iterator[_Section]:
    """The spans between headings. A heading with only deeper headings below it joins the first of them."""
    text, headings = document.text, document.headings
    first = headings[0].start if headings else len(text)
    if text[:first].strip():
        yield _Section(0, first, "")
    path: list[tuple[int, str]] = []
    begin: int | None = None
    for number, heading in enumerate(headings):
        following = headings[number + 1] if number + 1 < len(headings) else None
        end = following.start if following else len(text)
        path = [(level, title) for level, title in path if level < heading.level]
        path.append((heading.level, heading.title[:_TITLE]))
        begin = heading.start if begin is None else begin
        is_bare = not text[heading.end : end].strip()
        if is_bare and following is not None and following.level > heading.level:
            continue
        yield _Section(begin, end, " > ".join(title for _, title in path if title))
        begin = None


def _spans(text: str, section: _Section, blocks: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    # Headings are embedded with the text and take at most half of the window.
    limit = LIMIT - min(weight(section.heading), LIMIT // 2)
    end = section.start + len(text[section.start : section.end].rstrip())
    start = _skip(text, section.start, end)
    left = weight(text[start:end])
    while start < end:
        reach = _reach(text, start, end, limit)
        if reach < end:
            share = left // -(-left // limit)
            # A character may weigh more than one, so the share of the weight is scaled to characters.
            goal = start + max(1, (reach - start) * share // limit)
            reach = _cut(text, (start, reach), goal, blocks)
        yield start, start + len(text[start:reach].rstrip())
        following = _skip(text, reach, end)
        left -= weight(text[start:following])
        start = following


def _skip(text: str, start: int, end: int) -> int:
    """Where the next character stands that is not blank."""
    blanks = _BLANKS.match(text, start, end)
    return blanks.end() if blanks else start


def _reach(text: str, start: int, end: int, limit: int) -> int:
    """How far a chunk that begins here may go at most: always past its first character."""
    reach = min(end, start + limit)
    for number, heavy in enumerate(_HEAVY.finditer(text, start, reach)):
        room = start + limit - _EXTRA * number
        if heavy.start() >= room:
            return room
        if heavy.end() > room - _EXTRA:
            return max(start + 1, heavy.start())
        reach = min(end, room - _EXTRA)
    return reach


def _cut(text: str, window: tuple[int, int], goal: int, blocks: Sequence[tuple[int, int]]) -> int:
    """The best place in the window to end a chunk that begins with it: nearest to the goal."""
    start, reach = window
    nearby = blocks[max(0, bisect_left(blocks, (start, 0)) - 1) : bisect_left(blocks, (reach, 0))]
    inside = [block for block in nearby if start < block[1]]
    least = start + max(1, (goal - start) // 2)
    for pattern in (_PARAGRAPH, _SENTENCE, _LINE, _WORD):
        ends = [match.end() for match in pattern.finditer(text, start, reach)]
        places = [place for place in ends if not any(first < place < last for first, last in inside)]
        if within := [place for place in places if least <= place <= reach]:
            return min(within, key=lambda place: abs(place - goal))
    for pattern in (_LINE, _WORD):  # only a block is left: better cut there than within a word
        if within := [match.end() for match in pattern.finditer(text, least, reach)]:
            return within[-1]
    return _between_characters(text, start, reach)


def _between_characters(text: str, start: int, reach: int) -> int:
    """The last place that separates no accent, joiner or variation mark from its letter, if there is one."""
    for place in range(reach, start, -1):
        joined = text[place : place + 1] in _JOINERS or text[place - 1] == "\u200d"
        if not joined and not unicodedata.combining(text[place : place + 1] or " "):
            return place
    return reach
