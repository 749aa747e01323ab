"""What is asked in the soak, and what may come of it. Pure: the same seed asks the same things."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from xnai.agents.inference.requests import ChatMessage, CountRequest, GenerateRequest

SENDERS = ("ada", "grace", "linus", "mallory")
LANES = ("urgent", "normal", "normal", "background")
ENDED = frozenset({"stop", "length"})
BUSY = "refused busy"
CANCELED, LATE, LEFT = "canceled", "late", "left"
"""What comes of a task that its owner cancels, whose deadline passes, whose reader goes away."""

_WORDS = (
    *("river", "stone", "green", "under", "seven", "paper", "often", "never", "cloud", "table", "music"),
    *("winter", "engine", "garden", "silver", "orange", "letter", "window", "market", "yellow", "answer"),
    *("simple", "corner", "bridge", "little", "forest", "button", "candle", "bottle", "island", "quiet"),
)
_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
_REGEX = "[a-z]{2,6}"
_REFERENCES, _SAME = 42, 5
_BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"prompt": "a", "temperature": -1.0}, "invalid_payload"),
    ({"prompt": "a", "max_tokens": 0}, "invalid_payload"),
    ({"prompt": "a", "top_p": 2.0}, "invalid_payload"),
    ({"prompt": "a", "seed": -1}, "invalid_payload"),
    ({"prompt": "a", "stop": [""]}, "invalid_payload"),
    ({"prompt": 7}, "invalid_payload"),
    ({"max_tokens": 3}, "invalid_payload"),
    ({"prompt": "a", "regex": "a", "grammar": 'root ::= "a"'}, "invalid_payload"),
    ({"prompt": "a", "regex": "("}, "rule_invalid"),
    ({"prompt": "a", "json_schema": {"type": "nonsense"}}, "rule_invalid"),
    ({"prompt": "a", "model": "nobody"}, "unknown_model"),
)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    Attributes:
        kind: for the report.
        skill: of the inference agent.
        streamed: its chunks are read as they come.
        timeout: seconds until its deadline.
        cancel: seconds after which its owner cancels it; None for never.
        leave: how many chunks its reader stays for, or of a call how many hundredths of a second.
        same: what it shares with all requests whose answers must equal its own.
        may: what may come of it; to be refused as busy always may.
    """

    kind: str
    skill: str = "generate"
    payload: Any
    lane: str = "normal"
    sender: str = SENDERS[0]
    streamed: bool = False
    timeout: float = 90.0
    cancel: float | None = None
    leave: int | None = None
    same: str | None = None
    may: frozenset[str] = ENDED


class Mix:
    """The cases of a run.

    Attributes:
        references: what is asked alone, before the others, and again among them.
    """

    def __init__(self, seed: int, *, context: int, queue: int) -> None:
        self._random = random.Random(seed)
        self._context, self._queue = context, queue
        self._numbers = 0
        self._systems = [self._text(40) for _ in range(3)]
        self.references = [
            *(self._reference(number) for number in range(_REFERENCES)),
            *(self._embedding(number) for number in range(8)),
            *(self._counting(number) for number in range(8)),
        ]
        kinds: dict[Callable[[], list[Case]], float] = {
            self._again: 50,
            self._fresh: 12,
            self._conversation: 6,
            self._identical: 1.5,
            self._canceled_in_the_queue: 3,
            self._canceled_in_the_prompt: 2,
            self._canceled_in_the_answer: 1.5,
            self._left_stream: 4,
            self._left_call: 2,
            self._too_late: 3,
            self._too_long: 1.5,
            self._bad: 5,
            self._looking: 3,
            self._burst: 0.25,
        }
        self._kinds, self._weights = list(kinds), list(kinds.values())

    def next(self) -> list[Case]:
        """What is asked next: one request, or several at the same time."""
        (kind,) = self._random.choices(self._kinds, self._weights)
        return kind()

    def alone(self) -> list[Case]:
        """The references as they are asked alone: where the likeliest tokens are wanted, also how likely."""
        return [
            msgspec.structs.replace(case, payload=msgspec.structs.replace(case.payload, logprobs=2))
            if case.kind in ("plain", "stop string")
            else case
            for case in self.references
        ]

    # Texts

    def _text(self, words: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=words))

    def _unique(self, words: int) -> str:
        self._numbers += 1
        return f"{self._numbers} {self._text(words)}"

    def _case(self, kind: str, payload: object, **more: Any) -> Case:
        usual = {"lane": self._random.choice(LANES), "sender": self._random.choice(SENDERS)}
        return Case(kind=kind, payload=payload, **{**usual, **more})

    # Asked alone first

    def _reference(self, number: int) -> Case:
        options: Sequence[tuple[str, dict[str, Any], frozenset[str]]] = (
            ("plain", {}, ENDED),
            ("seeded", {"temperature": 0.8, "seed": number}, ENDED),
            ("stop string", {"stop": ("e", "qu")}, ENDED),
            ("regex", {"regex": _REGEX}, ENDED | {"incomplete"}),
            ("schema", {"json_schema": _SCHEMA, "max_tokens": 64}, frozenset({"stop", "incomplete"})),
            ("probabilities", {"logprobs": 2}, ENDED),
            ("penalties", {"repeat_penalty": 1.3, "frequency_penalty": 0.2}, ENDED),
        )
        kind, fields, may = options[number % len(options)]
        tokens = self._random.randint(4, 12)
        fields = {"max_tokens": tokens, "cache": False, **fields}
        if number % 3:
            request = GenerateRequest(prompt=self._unique(self._random.randint(2, 25)), **fields)
        else:
            request = GenerateRequest(messages=self._turns(number % 9), **fields)
        return Case(kind=kind, payload=request, same=f"text {number}", may=may)

    def _turns(self, number: int) -> tuple[ChatMessage, ...]:
        return (
            ChatMessage(role="system", content=self._systems[number % len(self._systems)]),
            ChatMessage(role="user", content=self._unique(self._random.randint(2, 12))),
        )

    def _embedding(self, number: int) -> Case:
        texts = [self._text(self._random.randint(1, 30)) for _ in range(1 + number % 5)]
        same, may = f"vectors {number}", frozenset({"vectors"})
        return Case(kind="embed", skill="embed", payload=texts, same=same, may=may)

    def _counting(self, number: int) -> Case:
        request = CountRequest(text=self._text(self._random.randint(1, 90)))
        same, may = f"count {number}", frozenset({"counted"})
        return Case(kind="count", skill="count", payload=request, same=same, may=may)

    # Among the others

    def _again(self) -> list[Case]:
        case = self._random.choice(self.references)
        again = self._case(case.kind, case.payload, skill=case.skill, same=case.same, may=case.may)
        if isinstance(case.payload, GenerateRequest):
            payload = msgspec.structs.replace(case.payload, cache=self._random.random() < 0.5)
            streamed = self._random.random() < 0.5
            again = msgspec.structs.replace(again, payload=payload, streamed=streamed)
        return [again]

    def _fresh(self) -> list[Case]:
        words = self._random.choice((2, 5, 10, 20, 60))
        fields: dict[str, Any] = {
            "temperature": self._random.choice((0.0, 0.7)),
            "pin": self._random.random() < 0.05,
        }
        request = GenerateRequest(
            prompt=self._unique(words), max_tokens=self._random.randint(1, 12), **fields
        )
        return [self._case("fresh", request, streamed=self._random.random() < 0.5)]

    def _conversation(self) -> list[Case]:
        request = GenerateRequest(messages=self._turns(self._random.randrange(9)), max_tokens=8)
        return [self._case("conversation", request, streamed=self._random.random() < 0.5)]

    def _identical(self) -> list[Case]:
        request = GenerateRequest(prompt=self._unique(30), max_tokens=10)
        lane, same = self._random.choice(LANES), f"identical {self._numbers}"
        return [
            self._case("identical", request, lane=lane, same=same, streamed=number % 2 == 0)
            for number in range(_SAME)
        ]

    def _canceled_in_the_queue(self) -> list[Case]:
        request = GenerateRequest(prompt=self._unique(20), max_tokens=8)
        may, lane = ENDED | {CANCELED}, "background"
        return [self._case("cancel at once", request, lane=lane, cancel=0.0, may=may)]

    def _canceled_in_the_prompt(self) -> list[Case]:
        request = GenerateRequest(prompt=self._unique(self._context // 8), max_tokens=4)
        cancel = self._random.uniform(0.005, 0.1)
        return [self._case("cancel in the prompt", request, cancel=cancel, may=ENDED | {CANCELED})]

    def _canceled_in_the_answer(self) -> list[Case]:
        request = GenerateRequest(prompt=self._unique(5), max_tokens=self._context // 8, temperature=0.5)
        cancel = self._random.uniform(0.1, 0.4)
        may = ENDED | {CANCELED}
        return [self._case("cancel in the answer", request, cancel=cancel, streamed=True, may=may)]

    def _left_stream(self) -> list[Case]:
        request = GenerateRequest(prompt=self._unique(8), max_tokens=self._context // 8, temperature=0.5)
        leave = self._random.randint(1, 4)
        return [self._case("leave a stream", request, streamed=True, leave=leave, may=ENDED | {LEFT})]

    def _left_call(self) -> list[Case]:
        request = GenerateRequest(prompt=self._unique(8), max_tokens=self._context // 8, temperature=0.5)
        leave = self._random.randint(1, 20)
        return [self._case("leave a call", request, leave=leave, may=ENDED | {LEFT})]

    def _too_late(self) -> list[Case]:
        request = GenerateRequest(prompt=self._unique(5), max_tokens=self._context // 8, temperature=0.5)
        timeout, may = self._random.uniform(0.05, 0.5), ENDED | {"deadline", LATE}
        streamed = self._random.random() < 0.5
        return [self._case("deadline", request, timeout=timeout, streamed=streamed, may=may)]

    def _too_long(self) -> list[Case]:
        truncate: Any = self._random.choice((None, None, "start", "middle"))
        request = GenerateRequest(prompt=self._unique(2 * self._context), max_tokens=4, truncate=truncate)
        if truncate:
            return [self._case("cut prompt", request)]
        return [self._case("prompt too long", request, may=frozenset({"refused prompt_too_long"}))]

    def _bad(self) -> list[Case]:
        payload, code = self._random.choice(_BAD)
        return [self._case("bad request", payload, may=frozenset({f"refused {code}"}))]

    def _looking(self) -> list[Case]:
        skill = self._random.choice(("status", "models"))
        return [self._case(skill, None, skill=skill, may=frozenset({"seen"}))]

    def _burst(self) -> list[Case]:
        sender = self._random.choice(SENDERS)
        requests = [GenerateRequest(prompt=self._unique(4), max_tokens=4) for _ in range(2 * self._queue)]
        return [self._case("burst", request, sender=sender) for request in requests]


def schema_kept(text: str) -> bool:
    """Whether a text is what the schema of the cases asks for."""
    try:
        value = msgspec.json.decode(text, type=dict[str, bool | int])
    except msgspec.DecodeError:
        return False
    return (
        set(value) == {"ok", "n"}
        and isinstance(value["ok"], bool)
        and not isinstance(value["n"], bool)
        and 0 <= value["n"] <= 99
    )


def regex_kept(text: str) -> bool:
    """Whether a text is what the regular expression of the cases asks for."""
    return 2 <= len(text) <= 6 and text.isascii() and text.isalpha() and text.islower()
