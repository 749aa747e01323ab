"""Where a stack lives: beside `xnai.toml`, in `.xnai/`. Every agent imports this: it stays light."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xnai.bus.locating import STACK_FOLDER
from xnai.protocol.errors import InvalidSettings

SETTINGS_FILE = "xnai.toml"


def find_settings(folder: Path) -> Path | None:
    """The `xnai.toml` that stands nearest, in `folder` or above it."""
    for place in (folder, *folder.parents):
        if (file := place / SETTINGS_FILE).is_file():
            return file
    return None


def stack_folder(folder: Path) -> Path:
    """The `.xnai` folder of the stack that `folder` belongs to; it need not exist yet.

    It stands beside the nearest `xnai.toml`, otherwise where one stands already, otherwise in `folder`.
    """
    if file := find_settings(folder):
        return file.parent / STACK_FOLDER
    for place in (folder, *folder.parents):
        if (place / STACK_FOLDER).is_dir():
            return place / STACK_FOLDER
    return folder / STACK_FOLDER


def parse_settings(file: Path) -> dict[str, Any]:
    """The tables of a settings file, unchecked.

    Raises:
        InvalidSettings: it cannot be read, or is no TOML; the sentence names the line.
    """
    import tomllib  # an agent that `xnai up` starts never comes here

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidSettings(f"{file} cannot be read: {reason}.") from error
