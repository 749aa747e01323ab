"""What may stand where the cursor is on a command line: commands, options, their values, addresses.

Read from the parsers of the commands themselves, so that nothing has to be said twice. The attributes of
argparse that this leans on begin with an underscore, and have stayed the same since Python 3.2.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import msgspec

from xnai.deploy.folders import find_settings, parse_settings
from xnai.protocol.errors import InvalidSettings

_PATHS = {"PATH", "FILE", "FOLDER", "TARGET"}  # how arguments that are files are called in the help


class Candidate(msgspec.Struct, frozen=True):
    """A word that may stand there, and what it means."""

    word: str
    meaning: str = ""


class Files(msgspec.Struct, frozen=True):
    """The shell's own completion of files may stand there."""


Candidates = list[Candidate]


def complete(words: Sequence[str], parser: argparse.ArgumentParser) -> Candidates | Files:
    """What may stand in the place of the last of `words`, which follow the name of the program."""
    *before, current = _joined(words)
    positionals, options, awaiting = _positionals(parser), True, None
    for word in before:
        if awaiting is not None:
            awaiting = None
        elif options and word == "--":
            options = False
        elif options and word.startswith("-") and word != "-":
            awaiting = _awaiting(parser, word)
        elif positionals and isinstance(positionals[0], argparse._SubParsersAction):
            if word not in positionals[0].choices:
                return []
            parser = positionals[0].choices[word]
            positionals = _positionals(parser)
        elif positionals and positionals[0].nargs not in ("+", "*"):
            positionals = positionals[1:]
    if awaiting is not None:
        return _values(awaiting, current)
    if options and current.startswith("--") and "=" in current:
        return _after_equals(parser, current)
    if options and current.startswith("-"):
        return _options(parser, current)
    return _values(positionals[0], current) if positionals else []


def _joined(words: Sequence[str]) -> list[str]:
    """The words with `--option = value`, as bash takes it apart, in one piece again."""
    joined: list[str] = []
    for word in words or ("",):
        if joined and (word == "=" or joined[-1].endswith("=")) and joined[-1].startswith("--"):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return list(parser._get_positional_actions())


def _awaiting(parser: argparse.ArgumentParser, option: str) -> argparse.Action | None:
    """The option, if a value has to follow it."""
    action = parser._option_string_actions.get(option)
    return action if action is not None and action.nargs != 0 else None


def _options(parser: argparse.ArgumentParser, start: str) -> Candidates:
    return [
        Candidate(name, action.help or "")
        for action in parser._get_optional_actions()
        for name in action.option_strings
        if name.startswith(start) and action.help != argparse.SUPPRESS
        if name.startswith("--") or len(action.option_strings) == 1
    ]


def _after_equals(parser: argparse.ArgumentParser, current: str) -> Candidates | Files:
    option, _, start = current.partition("=")
    action = _awaiting(parser, option)
    found = _values(action, start) if action is not None else []
    if isinstance(found, Files):
        return found
    return [Candidate(f"{option}={each.word}", each.meaning) for each in found]


def _values(action: argparse.Action, start: str) -> Candidates | Files:
    """What the value of an argument or an option may be."""
    known: Candidates = []
    if isinstance(action, argparse._SubParsersAction):
        known = [Candidate(each.dest, each.help or "") for each in action._choices_actions]
    elif action.choices is not None:
        known = [Candidate(str(choice)) for choice in action.choices]
    elif action.metavar in _PATHS:
        return Files()
    elif action.metavar in _FINDERS:
        known = _FINDERS[action.metavar](start)
    return [each for each in known if each.word.startswith(start)]


def _agents() -> dict[str, str]:
    """The agents of the nearest xnai.toml, and their modules."""
    file = find_settings(Path.cwd())
    try:
        tables = parse_settings(file).get("agents") if file else None
    except InvalidSettings:
        return {}
    if not isinstance(tables, dict | None):
        return {}
    found = {
        name: str(table.get("module", ""))
        for name, table in (tables or {}).items()
        if isinstance(table, dict)
    }
    if tables is None or not all(found.values()):
        from xnai.deploy.settings import DEFAULT_AGENTS  # takes long to import

        ours = DEFAULT_AGENTS if tables is None else {name: DEFAULT_AGENTS.get(name, "") for name in found}
        return {**ours, **{name: module for name, module in found.items() if module}}
    return found


def _names(start: str) -> Candidates:
    return [Candidate(name, module) for name, module in _agents().items()]


def _addresses(start: str) -> Candidates:
    """The skills of all agents whose source is found; of the others the agent alone, and a dot."""
    found = []
    for agent, module in _agents().items():
        if agent.startswith(start.partition(".")[0]):
            skills = [Candidate(f"{agent}.{name}", what) for name, what in _skills(module)]
            found += skills or [Candidate(f"{agent}.", module)]
    return found


def _models(start: str) -> Candidates:
    """The models on this disk."""
    from xnai.agents.inference.minilm import default_cache  # takes long to import
    from xnai.deploy.models.folders import find_models

    file = find_settings(Path.cwd())
    found = find_models(default_cache(), file.parent if file else Path.cwd())
    return [Candidate(each.name, each.source) for each in found]


_FINDERS: dict[Any, Callable[[str], Candidates]] = {
    "AGENT.SKILL": _addresses,
    "AGENT": _names,
    "MODEL": _models,
}


def _skills(target: str) -> Iterator[tuple[str, str]]:
    """Names and first lines of what a module declares as skills, from its source: nothing of it is run."""
    source = _source(target.partition(":")[0])
    try:
        nodes = ast.parse(source.read_bytes()).body if source else []
    except (OSError, SyntaxError, ValueError):
        return
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                if name := _skill_name(decorator, node.name):
                    yield name, (ast.get_docstring(node) or "").partition("\n")[0]


def _skill_name(decorator: ast.expr, default: str) -> str | None:
    """What `@agent.skill` or `@agent.skill(name="…")` calls a function; None for other decorators."""
    call = decorator if isinstance(decorator, ast.Call) else None
    what = call.func if call else decorator
    if not isinstance(what, ast.Attribute) or what.attr != "skill":
        return None
    for keyword in call.keywords if call else ():
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return default


def _source(place: str) -> Path | None:
    """The file of a target, as `xnai up` would find it, found without importing anything."""
    file = find_settings(Path.cwd())
    beside = file.parent if file else Path.cwd()
    if place.endswith(".py") or "/" in place:
        return beside / place
    search, spec = [str(beside), *sys.path], None
    parts = place.split(".")
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec is not None and spec.origin else None
