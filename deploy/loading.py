"""Finding the agent in a target: `examples/maths.py`, `package.module:agent`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from xnai.agents import Agent
from xnai.protocol.errors import InvalidAgent, InvalidArgument, InvalidSettings, XnaiError

Configure = Callable[[dict[str, Any], Path], None]


def load(target: str) -> tuple[Agent, ModuleType]:
    """The agent that `target` names, and the module it stands in.

    A target is the path of a Python file or the name of a module; `:name` behind it says which agent, and
    may be left out where the module has only one.

    Raises:
        InvalidArgument: there is no such file or module.
        InvalidAgent: it cannot be imported, has no agent, or more than one.
    """
    place, _, name = target.partition(":")
    module = _from_file(Path(place)) if place.endswith(".py") or "/" in place else _by_name(place)
    agents = {key: value for key, value in vars(module).items() if isinstance(value, Agent)}
    if name:
        if name not in agents:
            raise InvalidAgent(f"{place} has no agent {name}.{_choice(place, agents)}")
        return agents[name], module
    if len(set(agents.values())) != 1:
        count = "more than one agent" if agents else "no agent"
        raise InvalidAgent(f"{place} has {count}.{_choice(place, agents)}")
    return next(iter(agents.values())), module


def _choice(place: str, agents: Mapping[str, Agent]) -> str:
    if not agents:
        return ' It needs a line such as: agent = Agent("name")'
    return f" Choose one: {', '.join(f'{place}:{name}' for name in agents)}"


def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise InvalidArgument(f"There is no file {file}.")
    # The name that another module of the same folder would import it by, unless that is taken.
    name = file.stem if file.stem not in sys.modules else f"agent_in_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InvalidArgument(f"{file} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.resolve().parent))
    # A compiled file is taken for current if its source has the same size and time, in whole seconds: whoever
    # saves `int` and then `str` within a second, and has it reloaded, would go on with `int`.
    sys.dont_write_bytecode = True
    loader = spec.loader
    _foreign(str(file), lambda: loader.exec_module(module))
    return module


def _by_name(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        known = importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        known = False
    if not known:
        raise InvalidArgument(f"There is no module {name}, in the working folder or installed.")
    _foreign(name, lambda: importlib.import_module(name))
    return sys.modules[name]


def configure(module: ModuleType, name: str, settings: dict[str, Any], folder: Path) -> None:
    """Hand an agent its own settings and the stack's folder, below which its data goes, if its module asks.

    Raises:
        InvalidSettings: there are settings, but no `configure` to take them.
    """
    hand: Configure | None = getattr(module, "configure", None)
    if hand is None:
        if settings:
            raise InvalidSettings(
                f"agents.{name}.settings has {', '.join(settings)}, but {module.__name__} takes no settings: "
                "it defines no configure(settings, folder)."
            )
        return
    _foreign(f"configure() of {module.__name__}", lambda: hand(settings, folder))


def _foreign(what: str, do: Callable[[], object]) -> None:
    try:
        do()
    except XnaiError:
        raise
    except Exception as error:  # an author's module may raise anything
        raise InvalidAgent(f"{what} fails: {type(error).__name__}: {error}{_line(error)}") from error


def _line(error: Exception) -> str:
    """Where in the author's code it was raised."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<") and file != __file__:
            place = f" ({file}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place
