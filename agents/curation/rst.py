"""reStructuredText, and the plain text that Sphinx makes of it (`pydoc_data.topics`): underlined headings."""

from __future__ import annotations

import re

from xnai.agents.curation.outline import Extract, Heading, first_title

_RULE = re.compile(r"([!-/:-@\[-`{-~])\1+[ \t]*$")


def extract_rst(text: str) -> Extract:
    """Find headings: a line with one of punctuation marks below it, at least as long, and perhaps one above.

    Their levels follow the order in which the styles first appear, as docutils does it. Never raises.
    """
    lines = text.split("\n")
    styles: list[tuple[str, bool]] = []
    headings: list[Heading] = []
    start = 0
    after = 0  # the number of the first line after the last heading
    for number, line in enumerate(lines):
        overlined = _overlined(lines, number, after)
        if number >= after and _underlined(lines, number, overlined):
            first = start - len(lines[number - 1]) - 1 if overlined else start
            style = (lines[number + 1][0], overlined)
            if style not in styles:
                styles.append(style)
            end = start + len(line) + 1 + len(lines[number + 1])
            title = " ".join(line.split())
            headings.append(Heading(start=first, end=end, level=styles.index(style) + 1, title=title))
            after = number + 2
        start += len(line) + 1
    found = tuple(headings)
    return Extract(text=text, title=first_title(found), headings=found)


def _overlined(lines: list[str], number: int, after: int) -> bool:
    if number - 1 < after or number + 1 >= len(lines):
        return False
    return lines[number - 1] == lines[number + 1] and _RULE.match(lines[number - 1]) is not None


def _underlined(lines: list[str], number: int, overlined: bool) -> bool:
    line = lines[number].rstrip()
    if not line or number + 1 >= len(lines) or _RULE.match(lines[number + 1]) is None or _RULE.match(line):
        return False
    if len(lines[number + 1].rstrip()) < len(line):
        return False
    stands_alone = number == 0 or not lines[number - 1].strip()
    return overlined or (stands_alone and not line[0].isspace())
