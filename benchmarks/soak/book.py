"""What came of all requests: counted, compared with what may have, and told as a report."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import msgspec

from benchmarks.harness import percentile
from benchmarks.soak.callers import Told
from benchmarks.soak.cases import BUSY, CANCELED, LATE, LEFT, regex_kept, schema_kept
from xnai.agents.inference.requests import Answer, Embeddings
from xnai.protocol import TaskState

ANSWERED = frozenset({"stop", "length", "incomplete", "tool", "deadline", "vectors", "counted", "seen"})
_MOST_NOTES = 20
_FEWEST, _SHORTEST = 20, 90.0  # samples, and seconds, from which a slope is one
_YOUNG = 15.0  # seconds in which an engine grows to its size
_TIE = 0.05  # natural logarithms; one model's rounding moves them by 0.03
_RARE = 2_000
_NEAR = 1e-3  # how far a number of a vector may be from what it was alone
_SHARES = (0.5, 0.9, 0.99, 1.0)
POISON = "refused poison"
_STATES = {
    CANCELED: {TaskState.CANCELED},
    LATE: {TaskState.FAILED, TaskState.CANCELED, TaskState.REJECTED},
    LEFT: {TaskState.CANCELED, TaskState.COMPLETED, TaskState.REJECTED, TaskState.FAILED},
}


class Memory(msgspec.Struct, frozen=True):
    """Megabytes of the agent and of its engine at a moment (`time.monotonic`), and the engine's process."""

    at: float
    agent: float
    engine: float
    process: int


class Verdict(msgspec.Struct, frozen=True):
    """Whether something holds, and what was seen."""

    name: str
    holds: bool
    seen: str


class Book:
    """What is written down while the soak goes on.

    Attributes:
        alone: answers of the references, by what they share.
        told: what each caller was told, by sender and id.
        kills: when the engine was killed.
        faults: what may not have happened, in sentences.
        mismatches: answers that differ from what the same request gave alone, of so many compared.
        ties: as many more do, where two tokens were as likely: rounding decides between them.
    """

    def __init__(self) -> None:
        self.alone: dict[str, Any] = {}
        self.told: dict[tuple[str, str], Told] = {}
        self.kills: list[float] = []
        self.memory: list[Memory] = []
        self.faults: list[str] = []
        self.mismatches: list[str] = []
        self.compared = self.ties = 0
        self._gaps: dict[str, list[tuple[int, float]]] = {}

    def write(self, told: Told) -> None:
        """Take down what came of a request, and compare it with what may have."""
        key = (told.case.sender, told.id)
        if key in self.told:
            self.faults.append(f"{told.id} was told twice")
        self.faults += [f"{told.case.kind} {told.id}: {fault}" for fault in self._faults(told)]
        if told.case.same and told.outcome in ANSWERED:
            self._compare(told)
        told.value = _slim(told.value)
        told.case = msgspec.structs.replace(told.case, payload=None)
        self.told[key] = told

    def _faults(self, told: Told) -> Iterator[str]:
        case, outcome, answer = told.case, told.outcome, told.value
        poisoned = outcome == POISON and self._killed_during(told) > 1
        if outcome not in case.may and outcome != BUSY and not poisoned:
            yield f"it ended as {outcome}, and may as {', '.join(sorted(case.may))}"
        if not isinstance(answer, Answer):
            return
        if told.chunks is not None and told.chunks != answer.text:
            yield f"its chunks make {told.chunks!r}, and its answer is {answer.text!r}"
        wrong = {
            "schema": outcome == "stop" and not schema_kept(answer.text),
            "regex": outcome == "stop" and not regex_kept(answer.text),
            "stop string": "e" in answer.text or "qu" in answer.text,
        }
        if wrong.get(case.kind):
            yield f"its text breaks the rule: {answer.text!r}"
        limit = getattr(case.payload, "max_tokens", math.inf)
        if answer.tokens_out > limit:
            yield f"{answer.tokens_out} tokens are more than {limit}"

    def _killed_during(self, told: Told) -> int:
        return sum(told.began <= at <= told.began + told.took for at in self.kills)

    def _compare(self, told: Told) -> None:
        """Under a name for what is asked, the first answer is the measure of the others."""
        assert told.case.same is not None
        value = told.value
        seen = (value.text, value.finish) if isinstance(value, Answer) else value
        alone = self.alone.setdefault(told.case.same, seen)
        if alone is seen:
            self._gaps[told.case.same] = _gaps(value)
            return
        self.compared += 1
        if isinstance(seen, Embeddings) and isinstance(alone, Embeddings):
            same = _near(alone, seen)
        else:
            same = alone == seen
        if not same and self._tied(told.case.same, value, alone):
            self.ties += 1
        elif not same:
            self.mismatches.append(
                f"{told.case.kind} {told.id}: {seen!r:.200}, alone {alone!r:.200}; {self._facts(told)}"
            )

    def _tied(self, same: str, value: object, alone: Any) -> bool:
        """Whether two tokens were about as likely where an answer leaves the one that was given alone."""
        if not isinstance(value, Answer):
            return False
        letters = zip(value.text, alone[0], strict=False)
        common, end = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], letters)), 0
        for length, gap in self._gaps[same]:
            end += length
            if end > common:
                return gap < _TIE
        return False

    def _facts(self, told: Told) -> str:
        """What may explain an answer."""
        life = told.began - max((at for at in self.kills if at <= told.began), default=-math.inf)
        since = f"{life:.0f} s after a kill" if life < math.inf else "before any kill"
        facts = [since, f"took {told.took:.2f} s", told.case.lane]
        facts += ["killed during it"] * bool(self._killed_during(told))
        if isinstance(told.value, Answer):
            facts += [f"{told.value.tokens_cached} of {told.value.tokens_in} tokens cached"]
            facts += ["reused"] * told.value.cached
            said = (told.value.text, told.value.finish)
            facts += [f"what {other} says alone" for other, alone in self.alone.items() if alone == said]
        return ", ".join(facts)

    # Judging

    def outcomes(self, rows: Mapping[tuple[str, str], TaskState]) -> Verdict:
        """Each request has one outcome, which its caller was told; `rows` is what the broker holds."""
        lost = [key for key in self.told if key not in rows]
        strange = [key for key in rows if key not in self.told]
        other = [
            f"{key[1]} is {state.name} and {self.told[key].outcome} was told"
            for key, state in rows.items()
            if key in self.told and state not in self._states(self.told[key])
        ]
        seen = (
            f"{len(rows):,} outcomes of {len(self.told):,} requests, {len(lost)} lost, {len(strange)} doubled"
        )
        self.faults += other
        return Verdict(
            "one outcome each", not (lost or strange or other), f"{seen}, {len(other)} told otherwise"
        )

    def _states(self, told: Told) -> set[TaskState]:
        if told.outcome in ANSWERED:
            return {TaskState.COMPLETED}
        return _STATES.get(told.outcome, {TaskState.REJECTED, TaskState.FAILED})

    def behaved(self) -> Verdict:
        """Nothing came of a request that may not."""
        return Verdict("nothing unexpected", not self.faults, f"{len(self.faults)} faults")

    def same_answers(self) -> Verdict:
        """An answer does not depend on who else is answered, but for ties.

        Those are known of the likeliest tokens alone; of what is drawn, or held to a rule, one answer in
        2,000 may differ.
        """
        seen = f"{len(self.mismatches)} of {self.compared:,} differ, and {self.ties} by a tie"
        return Verdict("answers as alone", len(self.mismatches) <= self.compared // _RARE, seen)

    def steady(self, name: str, *, warm: float, bound: float) -> Verdict:
        """The slope of memory behind the moment `warm`, of the median through all pairs (Theil and Sen).

        `bound` is in megabytes per 10,000 requests. Engines that have just been started do not count.
        """
        born: dict[int, float] = {}
        points = [
            (each.at, getattr(each, name))
            for each in self.memory
            if each.at >= max(warm, born.setdefault(each.process, each.at) + _YOUNG)
        ]
        points = points[:: max(1, len(points) // 200)]
        if len(points) < _FEWEST or points[-1][0] - points[0][0] < _SHORTEST:
            return Verdict(f"memory of the {name}", holds=True, seen="too short to say")
        slopes = [(b - a) / (t - s) for i, (s, a) in enumerate(points) for t, b in points[i + 1 :]]
        rate = sum(told.began >= warm for told in self.told.values()) / (points[-1][0] - points[0][0])
        growth = statistics.median(slopes) / max(rate, 1e-9) * 10_000
        seen = f"{growth:+.1f} MB in 10,000 requests, {bound:g} allowed"
        return Verdict(f"memory of the {name}", growth <= bound, seen)

    # Telling

    def lines(self) -> Iterator[str]:
        """What was asked, what came of it, how long it took, what was held."""
        kinds: dict[str, Counter[str]] = defaultdict(Counter)
        for told in self.told.values():
            kinds[told.case.kind][told.outcome] += 1
        for kind, counts in sorted(kinds.items()):
            parts = ", ".join(f"{outcome} {count:,}" for outcome, count in counts.most_common())
            yield f"{kind:<22}{counts.total():>7,}  {parts}"
        answers = [told.value for told in self.told.values() if isinstance(told.value, Answer)]
        answered = [told.took for told in self.told.values() if told.outcome in ANSWERED]
        yield _percentiles("waited", [answer.waited for answer in answers])
        yield _percentiles("first token", [answer.first_token for answer in answers])
        yield _percentiles("answered", answered)
        yield f"tokens of answers     {sum(answer.tokens_out for answer in answers):>7,}"
        for name in ("agent", "engine"):
            held = [getattr(each, name) for each in self.memory]
            if held:
                tenths = " ".join(f"{held[(len(held) - 1) * tenth // 10]:.0f}" for tenth in range(11))
                yield f"MB of the {name:<12}{tenths} from tenth to tenth, {max(held):.0f} at most"
        for title, notes in (("FAULT", self.faults), ("MISMATCH", self.mismatches)):
            yield from (f"{title} {note}" for note in notes[:_MOST_NOTES])
            if len(notes) > _MOST_NOTES:
                yield f"{title} … {len(notes) - _MOST_NOTES:,} more"


def _percentiles(title: str, values: Sequence[float]) -> str:
    if not values:
        return f"{title:<22}nothing"
    parts = ", ".join(f"{share:.0%} {percentile(values, share):.3f}" for share in _SHARES)
    return f"{title:<22}{parts} s"


def _near(one: Embeddings, other: Embeddings) -> bool:
    pairs = [
        pair for a, b in zip(one.vectors, other.vectors, strict=False) for pair in zip(a, b, strict=True)
    ]
    return len(one.vectors) == len(other.vectors) and all(abs(a - b) <= _NEAR for a, b in pairs)


def _gaps(value: object) -> list[tuple[int, float]]:
    """Of each token of an answer: its letters, and by how much (a logarithm) it was the likeliest."""
    if not isinstance(value, Answer):
        return []
    return [
        (len(each.token), each.top[0][1] - each.top[1][1]) for each in value.logprobs if len(each.top) > 1
    ]


def _slim(value: object) -> object:
    """Without what takes room and is compared already."""
    if isinstance(value, Answer):
        return msgspec.structs.replace(value, text="", logprobs=(), value=None)
    return None
