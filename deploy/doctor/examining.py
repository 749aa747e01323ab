"""All checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from xnai.deploy.doctor import agents, broker, disk, limits, memory, secrets, stack, supervisor
from xnai.deploy.doctor.finding import Case, Finding, fine, problem, warning
from xnai.deploy.folders import find_settings, stack_folder
from xnai.deploy.settings import Settings, read_settings
from xnai.protocol.errors import InvalidSettings

Check = Callable[[Case], Iterator[Finding]]
CHECKS: Mapping[str, Check] = {
    "stack": stack.killed,
    "data_folder": disk.folder,
    "disk_space": disk.space,
    "disk_speed": disk.speed,
    "secrets": secrets.readable,
    "keys": secrets.damaged,
    "token": secrets.guessable,
    "port": stack.port,
    "server": broker.binary,
    "extras": agents.extras,
    "modules": agents.modules,
    "models": agents.models,
    "memory": memory.left,
    "swap": memory.swap,
    "pressure": memory.pressure,
    "open_files": limits.open_files,
    "processors": limits.processors,
}


async def examine(variables: Mapping[str, str]) -> list[Finding]:
    """Everything there is to say about the stack of the working folder, and the machine under it.

    Settings that cannot be used are a finding of their own; the rest is then examined without them.
    """
    folder = Path.cwd()
    file = find_settings(folder)
    found: list[Finding] = []
    try:
        settings = read_settings(file, variables)
    except InvalidSettings as error:
        found.append(problem("settings", str(error), "See docs/configuration.md for what may stand there."))
        settings = Settings(agents={})
    else:
        found.append(fine("settings", _said_of(file, settings)))
    case = Case(folder=stack_folder(folder), file=file, settings=settings)
    for name, check in CHECKS.items():
        try:
            found += check(case)
        except OSError as error:  # a part of the machine that this user may not look at
            found.append(warning(name, f"This could not be looked at: {error}.", "Look as another user."))
    found += [each async for each in broker.connection(case)]
    return found + [each async for each in supervisor.answers(case)]


def _said_of(file: Path | None, settings: Settings) -> str:
    names = ", ".join(settings.agents) or "none"
    if file is None:
        return f"There is no xnai.toml, which `xnai init` makes; without it the agents are {names}."
    return f"{file} can be used. Its agents: {names}."
