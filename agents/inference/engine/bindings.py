"""llama.cpp's functions, by the low-level half of llama-cpp-python.

The package imports its other half too, and that Jinja, a cache on SQLite, asyncio and more: 12 MB and half of
the engine's start, for nothing. So its place is taken before it is imported.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

_PACKAGE = "llama_cpp"


def _lighten() -> None:
    """Puts an empty package in place of llama_cpp, whose modules can be imported all the same."""
    if _PACKAGE in sys.modules:
        return
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        return  # the import below says what is missing
    package = ModuleType(_PACKAGE)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[_PACKAGE] = package


_lighten()

import llama_cpp.llama_cpp as lib  # noqa: E402  # behind what makes it light

__all__ = ["lib", "version"]


def version() -> str:
    """Of the bindings, and with them of llama.cpp."""
    import importlib.metadata  # two megabytes that few need

    return importlib.metadata.version("llama-cpp-python")
