"""Sizes and durations as people write them ("1GiB", "100ms", "7d") and read them."""

from __future__ import annotations

import re

_SIZES = {
    "": 1.0,
    "b": 1.0,
    **{f"{letter}b": 1000.0**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024.0**power for power, letter in enumerate("kmgt", 1)},
}
_DURATIONS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*").fullmatch


def read_size(said: object) -> int:
    """Bytes: a number, or one with B, kB, MB, GB, TB (thousands) or KiB, MiB, GiB, TiB (1,024).

    Raises:
        ValueError: it is no size.
    """
    size = _read(said, _SIZES)
    if size is None:
        raise ValueError(f'{said!r} is no size: write a number of bytes, or for example "1GiB"')
    return round(size)


def read_duration(said: object) -> float:
    """Seconds: a number, or one with ms, s, m, h or d.

    Raises:
        ValueError: it is no duration.
    """
    seconds = _read(said, _DURATIONS)
    if seconds is None:
        raise ValueError(f'{said!r} is no duration: write a number of seconds, or for example "10s" or "7d"')
    return seconds


def _read(said: object, units: dict[str, float]) -> float | None:
    if isinstance(said, (int, float)) and not isinstance(said, bool):
        return float(said)
    found = _QUANTITY(said) if isinstance(said, str) else None
    factor = units.get(found[2].lower()) if found else None
    return None if found is None or factor is None else float(found[1]) * factor


def short_span(seconds: float) -> str:
    """A time in its largest unit, for tables: `45s`, `12m`, `3h`, `9d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(int(seconds), 0)}s"


def span(seconds: float) -> str:
    """A time in words, with what matters of it: `0.25 s`, `12 s`, `3 min`, `5 h`, `9 d`."""
    for unit, size, from_ in (("d", 86_400, 172_800), ("h", 3_600, 7_200), ("min", 60, 120)):
        if seconds >= from_:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s" if seconds >= 10 else f"{max(seconds, 0.0):.2g} s"


def size(count: float) -> str:
    """Bytes for people: `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
