"""A look at a stack as lines for people, the important ones first, none wider than the window."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from xnai.agents.inference.requests import InferenceStatus, LoadedModel
from xnai.deploy.supervisor.orders import Row
from xnai.deploy.table import GAP, Cell, Line, Tone, fit, laid_out, shown, width_of
from xnai.deploy.top.sample import Sample
from xnai.deploy.units import short_span

_AGENTS = ("AGENT", "LEVEL", "RUNNING", "DONE", "FAILED", "RESTARTS", "UP", "MB", "PID", "LAST ERROR")
_MODELS = ("MODEL", "KIND", "STATE", "SLOTS", "CONTEXT", "MB", "PREFILL/S", "DECODE/S")
_LABEL = 8
_BAR = 16
_MB = 1e6


def page(
    sample: Sample, before: Sample | None = None, *, width: int, height: int | None = None
) -> list[Line]:
    """What a window of this size shows; `before` is the look before, for what was done between the two."""
    lines = [_head(sample), *_trouble(sample.trouble)]
    if sample.inference is not None:
        lines += _facts(sample.inference, _answering(sample, before))
    elif not sample.trouble:
        lines.append([("There is no inference agent on this bus.", "dim")])
    if sample.models:
        lines += [[], *_table(map(_model, sample.models), _MODELS, width)]
    if sample.agents:
        lines += [[], *_table(map(_agent, sample.agents), _AGENTS, width)]
    if height is not None and len(lines) > height:
        left = len(lines) - height + 1
        lines[height - 1 :] = [[(f"{left} more lines: make the window higher", "dim")]]
    return [cropped(line, width) for line in lines]


def cropped(line: Line, width: int) -> Line:
    """What of a line fits."""
    found: Line = []
    for text, tone in line:
        room = width - len(GAP) * bool(found)
        if room < 1:
            break
        found.append((fit(text, room) if width_of(text) > room else text, tone))
        width = room - width_of(found[-1][0])
    return found


def _head(sample: Sample) -> Line:
    clock = time.strftime("%H:%M:%S", time.localtime(sample.at))
    return [("xnai top", "plain"), (clock, "plain"), (_count(len(sample.agents), "process", "es"), "dim")]


def _trouble(sentences: Sequence[str]) -> list[Line]:
    return [[(shown(" ".join(sentence.split())), "bad")] for sentence in sentences]


def _facts(said: InferenceStatus, answering: float | None) -> Iterator[Line]:
    now = "" if answering is None else f", {answering:,.0f} tokens/s now"
    hits = f"{_share(said.prompt_hits, said.prompts)} of prompts"
    hit_tokens = f"{_share(said.hit_tokens, said.prompt_tokens)} of their tokens"
    waiting = f"{said.waiting} waiting ({_count(said.waiting_tokens, 'token')})"
    yield _fact("slots", f"{_bar(said)} {said.running} of {said.slots}, {_count(said.threads, 'thread')}")
    yield _fact("load", f"{said.load:.0%}{now}")
    yield _fact("queue", f"{said.running} running, {waiting}, {said.paused} paused")
    yield _fact("speed", f"prefill {said.prefill:,.0f} tokens/s, decode {said.decode:,.0f} tokens/s")
    yield _fact("cache", f"hits: {hits}, {hit_tokens}; {said.shared:,} shared, {said.reused:,} reused")
    yield _fact(
        "answers", f"{said.answered:,} given, {said.refused:,} refused, {_count(said.generated, 'token')}"
    )
    engine = f"{said.memory / _MB:,.0f} MB, {_count(said.restarts, 'restart')}"
    yield _fact("engine", engine, "warning" if said.restarts else "plain")


def _fact(label: str, text: str, tone: Tone = "plain") -> Line:
    return [(f"{label:<{_LABEL}}", "dim"), (text, tone)]


def _answering(sample: Sample, before: Sample | None) -> float | None:
    """Tokens of answers a second since the look before; None where there is none, or it began anew."""
    if before is None or sample.inference is None or before.inference is None or sample.at <= before.at:
        return None
    made = sample.inference.generated - before.inference.generated
    return made / (sample.at - before.at) if made >= 0 else None


def _bar(said: InferenceStatus) -> str:
    length = min(said.slots, _BAR)
    full = min(length, -(-said.running * length // said.slots)) if said.slots else 0
    return f"[{'#' * full}{'-' * (length - full)}]"


def _model(model: LoadedModel) -> tuple[object, ...]:
    held = model.weights + model.kv + model.buffers
    return (
        model.name,
        model.kind,
        Cell("loaded", "good") if model.loaded else Cell("unloaded", "dim"),
        model.slots if model.loaded else None,
        model.context or None,
        round(held / _MB) if model.loaded else None,
        round(model.prefill) or None,
        round(model.decode) or None,
    )


def _agent(row: Row) -> tuple[object, ...]:
    well = row.level in ("consuming", "progressing")
    return (
        row.name,
        Cell(row.level, "good" if well else "bad" if row.level == "dead" else "warning"),
        row.running,
        row.done,
        row.failed,
        row.restarts,
        short_span(row.uptime) if row.pid else None,
        round(row.memory_mb) if row.pid else None,
        row.pid,
        row.last_error,
    )


def _table(rows: Iterator[tuple[object, ...]], columns: Sequence[str], width: int) -> list[Line]:
    """A table with as many of its columns, from the first, as there is room for."""
    whole = list(rows)
    for count in range(len(columns), 1, -1):
        lines = laid_out([row[:count] for row in whole], columns[:count], width)
        if max(sum(width_of(text) for text, _ in line) + len(GAP) * (count - 1) for line in lines) <= width:
            return lines
    return laid_out([row[:1] for row in whole], columns[:1], width)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _count(number: int, what: str, many: str = "s") -> str:
    return f"{number:,} {what}{'' if number == 1 else many}"
