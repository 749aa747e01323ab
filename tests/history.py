"""What was seen of a run in which things were killed, and whether it may have happened.

A history is a sequence of records. The records of one process (`by`) stand in the order in which it wrote
them; between processes there is no order. `check` is a pure function over them and looks for what breaks
one of these invariants:

- none lost: every task that the broker confirmed has an outcome in the end, and whoever asked and was not
  killed was told;
- one outcome each;
- heard = stored: what was heard live stands in the log, byte for byte at the same place; who followed a whole
  story has heard all of it;
- returned = stored: a caller is told the outcome that is stored, and nothing else;
- attempts: at most the limit and one more, hand-backs not counted;
- order: everybody hears a task's events in the order of the log, each once, and an attempt that failed or
  was handed back says nothing more;
- nothing stands behind the outcome;
- chunks: the attempt that completed has stored each chunk once and in order, its answer is made of them, and
  a reader was handed exactly these.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import msgspec

from xnai.protocol import TaskState
from xnai.protocol.events import FAILED, OUTCOME, RETURNED

OVER = (FAILED, RETURNED)
T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something seen about the task `id`."""

    id: str


class Sent(Record, frozen=True, kw_only=True, tag=True):
    """The broker has confirmed the task to the one who sent it."""


class Asked(Record, frozen=True, kw_only=True, tag=True):
    """`by` began to wait for the answer."""

    by: str


class Yielded(Record, frozen=True, kw_only=True, tag=True):
    """The reader `by` was handed a chunk; `value` is its JSON."""

    by: str
    value: str


class Returned(Record, frozen=True, kw_only=True, tag=True):
    """`by` was told how the task ended: its A2A state, and its answer as JSON or the code of its error.

    The answer is empty for who read a stream: its chunks are the answer.
    """

    by: str
    state: str
    answer: str = ""


class Started(Record, frozen=True, kw_only=True, tag=True):
    """The handler of the process `by` began the attempt."""

    by: str
    attempt: int


class Heard(Record, frozen=True, kw_only=True, tag=True):
    """`by` heard an event; `digest` is of its body."""

    by: str
    sequence: int
    kind: str
    digest: str


class Followed(Record, frozen=True, kw_only=True, tag=True):
    """What `by` heard of the task is its whole story, from the first event to the outcome."""

    by: str


class Killed(Record, frozen=True, kw_only=True, tag=True):
    """The process `by` was killed: what it asked for need not have been answered. `id` is empty."""

    by: str


class At(Record, frozen=True, kw_only=True, tag=True):
    """The process `by` has come to a named point of a task's journey. Nothing follows from it."""

    by: str
    point: str


class Stored(Record, frozen=True, kw_only=True, tag=True):
    """An event that stands in the log at the end.

    Attributes:
        sequence: its place there.
        digest: of its body.
        attempt, instance: of whoever wrote it; 0 and empty where no attempt did.
        state, answer: of an outcome, as in `Returned`; for a stream the joined answer.
        index, values: of an event of a stream: the number of its first chunk, and its chunks as JSON.
        chunks: of the outcome of a stream: how many it had; -1 for any other.
    """

    sequence: int
    kind: str
    digest: str
    attempt: int = 0
    instance: str = ""
    state: str = ""
    answer: str = ""
    index: int = 0
    values: tuple[str, ...] = ()
    chunks: int = -1


AnyRecord = Sent | Asked | Yielded | Returned | Started | Heard | Followed | Killed | At | Stored


class Rule(enum.Enum):
    """The invariants, as `check` names them."""

    NONE_LOST = "none lost"
    ONE_OUTCOME = "one outcome each"
    HEARD_IS_STORED = "heard = stored"
    RETURNED_IS_STORED = "returned = stored"
    ATTEMPTS = "attempts within the limit"
    ORDER = "events in order"
    NOTHING_AFTER_THE_END = "nothing after the outcome"
    CHUNKS = "each chunk once and in order"


class Fault(msgspec.Struct, frozen=True):
    """What may not have happened: the rule that it breaks, the task, and what was seen."""

    rule: Rule
    id: str
    text: str


def check(history: Sequence[AnyRecord], *, max_attempts: int = 5) -> list[Fault]:
    """Every breach of the invariants in a history; none if it may have happened."""
    killed = {record.by for record in history if isinstance(record, Killed)}
    tasks: dict[str, list[AnyRecord]] = defaultdict(list)
    for record in history:
        if not isinstance(record, Killed):
            tasks[record.id].append(record)
    return [
        fault
        for id, records in tasks.items()
        for fault in _faults(_Story(id, records), killed=killed, max_attempts=max_attempts)
    ]


class _Story:
    """The records of one task."""

    def __init__(self, id: str, records: list[AnyRecord]) -> None:
        self.id, self.records = id, records
        self.stored = sorted(self.all(Stored), key=lambda event: event.sequence)
        self.outcomes = [event for event in self.stored if event.kind == OUTCOME]

    def all(self, kind: type[T]) -> list[T]:
        return [record for record in self.records if isinstance(record, kind)]

    def fault(self, rule: Rule, text: str) -> Fault:
        return Fault(rule, self.id, text)


def _faults(story: _Story, *, killed: set[str], max_attempts: int) -> Iterator[Fault]:
    yield from _lost(story, killed)
    yield from _outcomes(story)
    yield from _hearing(story)
    yield from _returned(story)
    yield from _attempts(story, max_attempts)
    yield from _order(story)
    if story.outcomes:
        yield from _chunks_stored(story, story.outcomes[0])
        yield from _chunks_handed_out(story, story.outcomes[0])


def _lost(story: _Story, killed: set[str]) -> Iterator[Fault]:
    if not story.outcomes and any(isinstance(record, Sent | Returned) for record in story.records):
        yield story.fault(Rule.NONE_LOST, "it has no outcome")
    told = {record.by for record in story.all(Returned)}
    for by in {record.by for record in story.all(Asked)} - told - killed:
        yield story.fault(Rule.NONE_LOST, f"{by} asked and was not told")


def _outcomes(story: _Story) -> Iterator[Fault]:
    if len(story.outcomes) > 1:
        yield story.fault(Rule.ONE_OUTCOME, f"it has {len(story.outcomes)} outcomes")
    for outcome in story.outcomes[:1]:
        for event in story.stored:
            if event.sequence > outcome.sequence and event.kind != OUTCOME:
                yield story.fault(Rule.NOTHING_AFTER_THE_END, f"{event.kind} stands at {event.sequence}")


def _hearing(story: _Story) -> Iterator[Fault]:
    stored = {event.sequence: (event.kind, event.digest) for event in story.stored}
    heard: dict[str, set[int]] = defaultdict(set)
    for event in story.all(Heard):
        heard[event.by].add(event.sequence)
        if stored.get(event.sequence) != (event.kind, event.digest):
            text = f"{event.by} heard {event.kind} at {event.sequence}, which is not what stands there"
            yield story.fault(Rule.HEARD_IS_STORED, text)
    for follower in story.all(Followed):
        if missed := sorted(stored.keys() - heard[follower.by]):
            yield story.fault(Rule.HEARD_IS_STORED, f"{follower.by} has not heard what stands at {missed}")


def _returned(story: _Story) -> Iterator[Fault]:
    for record in story.all(Returned):
        for outcome in story.outcomes[:1]:
            same = record.state == outcome.state and (
                record.answer == outcome.answer or (not record.answer and outcome.chunks >= 0)
            )
            if not same:
                text = f"{record.by} was told {record.state} {record.answer}"
                yield story.fault(Rule.RETURNED_IS_STORED, f"{text}, not {outcome.state} {outcome.answer}")


def _attempts(story: _Story, max_attempts: int) -> Iterator[Fault]:
    started = story.all(Started)
    handed_back = sum(event.kind == RETURNED for event in story.stored)
    if len(started) - handed_back > max_attempts + 1:
        yield story.fault(Rule.ATTEMPTS, f"its handler was started {len(started)} times")
    numbers = [record.attempt for record in started] + [event.attempt for event in story.stored]
    highest = max(numbers, default=0)
    if highest > max_attempts + 1:
        yield story.fault(Rule.ATTEMPTS, f"it had an attempt {highest}")


def _order(story: _Story) -> Iterator[Fault]:
    for by, events in _by_listener(story.all(Heard)):
        for one, next in pairwise(events):
            if next.sequence <= one.sequence:
                text = f"{by} heard {next.kind} at {next.sequence} behind {one.kind} at {one.sequence}"
                yield story.fault(Rule.ORDER, text)
    over: set[tuple[int, str]] = set()
    for event in story.stored:
        attempt = (event.attempt, event.instance)
        if attempt in over and event.kind != OUTCOME:
            yield story.fault(
                Rule.ORDER, f"attempt {event.attempt} was over before {event.kind} at {event.sequence}"
            )
        if event.kind in OVER:
            over.add(attempt)


def _by_listener(heard: Iterable[Heard]) -> Iterable[tuple[str, list[Heard]]]:
    by: dict[str, list[Heard]] = defaultdict(list)
    for event in heard:
        by[event.by].append(event)
    return by.items()


def _winning(story: _Story, outcome: Stored) -> list[Stored]:
    """The events of the stream that the attempt has stored which wrote the outcome."""
    return [
        event
        for event in story.stored
        if event.values and (event.attempt, event.instance) == (outcome.attempt, outcome.instance)
    ]


def _chunks_stored(story: _Story, outcome: Stored) -> Iterator[Fault]:
    if outcome.chunks < 0:
        return
    count = 0
    for event in _winning(story, outcome):
        if event.index != count:
            text = f"chunk {event.index} stands at {event.sequence}, where chunk {count} is due"
            yield story.fault(Rule.CHUNKS, text)
        count = event.index + len(event.values)
    if count != outcome.chunks:
        yield story.fault(Rule.CHUNKS, f"{count} chunks are stored, and its outcome counts {outcome.chunks}")
    values = [value for event in _winning(story, outcome) for value in event.values]
    if outcome.answer != joined(values):
        yield story.fault(Rule.CHUNKS, f"its answer is {outcome.answer}, which its chunks are not")


def _chunks_handed_out(story: _Story, outcome: Stored) -> Iterator[Fault]:
    stored = [value for event in _winning(story, outcome) for value in event.values]
    handed_out: dict[str, list[str]] = {
        record.by: [] for record in story.all(Returned) if outcome.chunks >= 0 and not record.answer
    }
    for chunk in story.all(Yielded):
        handed_out.setdefault(chunk.by, []).append(chunk.value)
    told = {record.by for record in story.all(Returned)}
    if outcome.state != TaskState.COMPLETED:
        return
    for by, values in handed_out.items():
        if values != (stored if by in told else stored[: len(values)]):
            text = f"{by} was handed {', '.join(values)}, where {', '.join(stored)} is stored"
            yield story.fault(Rule.CHUNKS, text)


def joined(values: Sequence[str]) -> str:
    """The answer, as JSON, of a stream with these chunks: joined text, or the list of the values."""
    if values and all(value.startswith('"') for value in values):
        text = "".join(msgspec.json.decode(value, type=str) for value in values)
        return msgspec.json.encode(text).decode()
    return f"[{','.join(values)}]"
