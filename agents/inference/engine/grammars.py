"""GBNF, llama.cpp's notation for grammars, in the notation of llguidance.

llama.cpp's own sampler for it filters the whole vocabulary at each token, and ends the process when a token
does not fit. Here each character of the grammar becomes one terminal of its own, so that no terminal takes
more than its share: the texts of the grammar are the same ones.

GBNF is described in `grammars/README.md` of llama.cpp. Tokens (`<[123]>`) are not supported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from xnai.agents.inference.errors import RuleInvalid

_DEEPEST = 50  # groups in groups
_LEVELS = 2_000  # of all rules together: llguidance descends through them by recursion
_TERMINALS = 10_000
_MOST = 2_000  # repetitions, as in llama.cpp

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|\#[^\r\n]*)
      | (?P<line>\r\n|\r|\n)
      | (?P<is>::=)
      | (?P<literal>"(?:\\.|[^"\\\r\n])*")
      | (?P<any>\.)
      | (?P<class>\[(?:\\.|[^\]\\\r\n])*\])
      | (?P<repeat>[*+?]|\{[ ]*\d+[ ]*(?:,[ ]*\d*[ ]*)?\})
      | (?P<mark>[()|])
      | (?P<name>[A-Za-z0-9_-]+)""",
    re.VERBOSE,
)
_LETTER = re.compile(
    r'\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(["\\\[\]nrt])|([^\\])', re.DOTALL
)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def to_lark(gbnf: str) -> str:
    """The same grammar for llguidance. Raises RuleInvalid, with the line, for what is no GBNF."""
    return _Reader(gbnf).read()


class _Reader:
    def __init__(self, gbnf: str) -> None:
        self._tokens = list(_tokens(gbnf))
        self._at = 0
        self._names: dict[str, str] = {"root": "start"}  # all that are spoken of
        self._rules: dict[str, str] = {}
        self._levels = self._deepest = self._terminals = 0

    def read(self) -> str:
        self._skip_lines()
        while self._kind() != "end":
            self._rule()
            self._skip_lines()
        missing = [name for name in self._names if name not in self._rules]
        if missing:
            raise RuleInvalid(f"the grammar has no rule {missing[0]!r}")
        return "".join(f"{self._names[name]}: {body}\n" for name, body in self._rules.items())

    def _rule(self) -> None:
        name = self._take("name", "a rule")
        self._take("is", "'::='")
        self._skip_lines()
        if name in self._rules:
            raise RuleInvalid(f"the grammar has two rules {name!r}")
        self._deepest = 0
        self._rules[name] = self._choice(0)
        self._levels += 1 + self._deepest
        if self._levels > _LEVELS or self._terminals > _TERMINALS:
            raise RuleInvalid(
                f"the grammar is too large: {_LEVELS} rules and {_TERMINALS} characters are allowed"
            )
        if self._kind() not in ("line", "end"):
            raise self._wrong("the end of the rule")

    def _choice(self, depth: int) -> str:
        if depth > _DEEPEST:
            raise RuleInvalid(f"the grammar has groups more than {_DEEPEST} deep")
        self._deepest = max(self._deepest, depth)
        options = [self._sequence(depth)]
        while self._is("|"):
            self._at += 1
            self._skip_lines()
            options.append(self._sequence(depth))
        return " | ".join(options)

    def _sequence(self, depth: int) -> str:
        items: list[str] = []
        while True:
            if depth:
                self._skip_lines()
            item = self._item(depth)
            if item is None:
                return " ".join(items) or '""'
            if depth:
                self._skip_lines()
            while self._kind() == "repeat":
                item = f"({item}){self._repetition()}"
            items.append(item)

    def _item(self, depth: int) -> str | None:
        kind, spelled, _ = self._tokens[self._at]
        if spelled == "(":
            self._at += 1
            inner = self._choice(depth + 1)
            if not self._is(")"):
                raise self._wrong("')'")
            spelled = f"({inner})"
        elif kind == "literal":
            spelled = " ".join(f"/{_spell(letter)}/" for letter in self._letters(spelled[1:-1])) or '""'
            spelled = f"({spelled})"
        elif kind == "class":
            spelled = self._class(spelled[1:-1])
        elif kind == "any":
            spelled = "/[^\\x{0}]/"
        elif kind == "name":
            spelled = self._names.setdefault(spelled, f"rule_{len(self._names)}")
        else:
            return None
        self._at += 1
        self._terminals += 1 + spelled.count(" ")
        return spelled

    def _class(self, inside: str) -> str:
        negated = inside.startswith("^")
        letters = re.findall(r"\\x..|\\u.{4}|\\U.{8}|\\.|.", inside[negated:], re.DOTALL)
        spans, at = [], 0
        while at < len(letters):
            first = last = self._letters(letters[at])[0]
            if letters[at + 1 : at + 2] == ["-"] and at + 2 < len(letters):
                last = self._letters(letters[at + 2])[0]
                at += 2
            if last < first:
                raise self._wrong("a range in order")
            spans.append(f"{_spell(first)}-{_spell(last)}")
            at += 1
        if not spans:
            if negated:
                return "/[^\\x{0}]/"
            raise self._wrong("a character in the brackets")
        spelled = "".join(spans)
        return f"/[^\\x{{0}}{spelled}]/" if negated else f"/[{spelled}]/"

    def _repetition(self) -> str:
        spelled = self._take("repeat", "a repetition").replace(" ", "")
        if any(int(number) > _MOST for number in re.findall(r"\d+", spelled)):
            raise RuleInvalid(f"the grammar repeats something more than {_MOST} times")
        return spelled

    def _letters(self, spelled: str) -> list[str]:
        letters, at = [], 0
        while at < len(spelled):
            found = _LETTER.match(spelled, at)
            if not found:
                raise self._wrong(r"one of \n \r \t \\ \" \[ \] \x00 \u0000 \U00000000 as an escape")
            code = found[1] or found[2] or found[3]
            if code and (int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) < 0xE000):
                raise self._wrong("an escape of a character that there is")
            letters.append(chr(int(code, 16)) if code else _ESCAPED.get(found[4], found[4]) or found[5])
            at = found.end()
        return letters

    def _kind(self) -> str:
        return self._tokens[self._at][0]

    def _is(self, mark: str) -> bool:
        return self._tokens[self._at][1] == mark

    def _skip_lines(self) -> None:
        while self._kind() == "line":
            self._at += 1

    def _take(self, kind: str, wanted: str) -> str:
        if self._kind() != kind:
            raise self._wrong(wanted)
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _wrong(self, wanted: str) -> RuleInvalid:
        _, found, line = self._tokens[self._at]
        return RuleInvalid(f"line {line} of the grammar has {found[:40] or 'its end'!r} instead of {wanted}")


def _tokens(gbnf: str) -> Iterator[tuple[str, str, int]]:
    """Kind, spelling and line of each, and an end."""
    at, line = 0, 1
    while at < len(gbnf):
        found = _TOKEN.match(gbnf, at)
        if not found:
            raise RuleInvalid(f"line {line} of the grammar has {gbnf[at : at + 20]!r}, which is no GBNF")
        kind = str(found.lastgroup)
        if kind != "space":
            yield kind, found[0] if kind != "line" else "", line
        line += kind == "line"
        at = found.end()
    yield "end", "", line


def _spell(letter: str) -> str:
    """A character in a regular expression."""
    return f"\\x{{{ord(letter):X}}}"
