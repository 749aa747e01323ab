"""`xnai up --watch`: the settings and the sources of agents are looked at, and what changed is applied."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

from xnai.deploy.console import Console
from xnai.deploy.supervisor.fleet import Fleet
from xnai.deploy.supervisor.orders import NotReady
from xnai.protocol.errors import InvalidSettings

_LOOK_EVERY = 0.3
Stamp = tuple[int, int]


async def watch(fleet: Fleet, settings: Path, console: Console, *, task_status: TaskStatus[None]) -> None:
    """Apply what changes in files from the moment at which it is started, until cancelled."""
    seen, told = _look(fleet), _stamps([settings])
    task_status.started()
    while True:
        await anyio.sleep(_LOOK_EVERY)
        changed = [name for name, stamps in seen.items() if stamps != _stamps(stamps)]
        now = _stamps([settings])
        if not changed and now == told:
            continue
        is_told_otherwise, told = now != told, now
        seen = _look(fleet)  # before it is applied: what is saved meanwhile is seen the next time
        if is_told_otherwise:
            await _reload(fleet, console)
            seen = _look(fleet) | seen
        for name in changed:
            await _renew(fleet, name, console)


def _look(fleet: Fleet) -> dict[str, dict[Path, Stamp | None]]:
    """The files of each agent, as they are now."""
    return {name: _stamps(sources(target, folder)) for name, target, folder in fleet.targets()}


async def _reload(fleet: Fleet, console: Console) -> None:
    try:
        changes = await fleet.reload()
    except InvalidSettings as error:
        console.say(f"nothing is changed: {error}")
        return
    for line in changes.lines():
        console.say(line)


async def _renew(fleet: Fleet, name: str, console: Console) -> None:
    if name not in fleet.groups:
        return
    console.say(f"the source of {name} has changed")
    try:
        await fleet.renew(name)
    except NotReady as error:
        console.say(str(error))


def _stamps(files: Iterable[Path]) -> dict[Path, Stamp | None]:
    """What tells whether a file was written: its time in nanoseconds, and its size."""
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> Stamp | None:
    try:
        facts = file.stat()
    except OSError:  # an editor may be replacing it
        return None
    return facts.st_mtime_ns, facts.st_size


def sources(target: str, folder: Path) -> set[Path]:
    """The files of an agent: its module, and those beside it or in `folder` that it imports, and so on.

    They are read and not run, so an import inside a condition counts.
    """
    place = target.partition(":")[0]
    is_file = place.endswith(".py") or "/" in place
    first = [folder / place] if is_file else list(_files_of(place, [folder]))
    roots = [*(file.parent for file in first), folder]
    found, left = set[Path](), [file for file in first if file.is_file()]
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            left += _imported(file, roots)
    return found


def _imported(file: Path, roots: list[Path]) -> Iterator[Path]:
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (OSError, SyntaxError, ValueError):  # it is being written
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of(alias.name, roots)
        elif isinstance(node, ast.ImportFrom):
            above = [file.parents[node.level - 1]] if 0 < node.level <= len(file.parents) else roots
            yield from _files_of(node.module or "", above)
            for alias in node.names:
                yield from _files_of(f"{node.module or ''}.{alias.name}".lstrip("."), above)


def _files_of(module: str, roots: Iterable[Path]) -> Iterator[Path]:
    """The files that an import of `module` runs, where they lie below `roots`."""
    parts = module.split(".")
    for root in roots:
        for length in range(1, len(parts) + 1):
            place = root.joinpath(*parts[:length])
            yield from filter(Path.is_file, (place.with_suffix(".py"), place / "__init__.py"))
