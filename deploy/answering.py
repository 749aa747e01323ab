"""From passages to what a person reads: numbered citations, the request for an answer, what it cites."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from xnai.agents.inference.requests import ChatMessage, Finish, GenerateRequest, Models
from xnai.agents.retrieval.passages import Hit

_ANSWER_TOKENS = 512
_CHARACTERS_PER_TOKEN = 3  # of a prompt, cautiously: English has about four
_INSTRUCTIONS = (
    "Answer the question from the numbered passages only, in a few sentences. Behind each statement cite the "
    "passage that it comes from by its number in brackets, like [1]. If the passages do not answer the "
    "question, say so."
)
_LINES, _CHARACTERS = 6, 420  # of a passage that is shown
_CITATION = re.compile(r"\[(\d{1,3})\]")


class Citation(msgspec.Struct, frozen=True, kw_only=True):
    """A passage as `xnai ask --json` shows it.

    Attributes:
        number: by which an answer cites it; 1 for the best.
        start, end: offsets of its text in the extracted text of its source, in code points.
        score: cosine similarity to the question.
        also: other sources that say the same.
    """

    number: int
    source: str
    heading: str
    start: int
    end: int
    score: float
    text: str
    also: tuple[str, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What `xnai ask --json` shows.

    Attributes:
        passages: best first.
        answer: in words; None where no generation model is configured.
        cited: the numbers of the passages that it cites.
        finish: why it ended: "stop" where the model had said all, "length" where it was cut off.
        model: the name of the model that gave it.
    """

    question: str
    passages: tuple[Citation, ...]
    answer: str | None = None
    cited: tuple[int, ...] = ()
    finish: Finish | None = None
    model: str | None = None


def citations(hits: Sequence[Hit]) -> tuple[Citation, ...]:
    """The hits, numbered in their order."""
    return tuple(
        Citation(
            number=number,
            source=hit.passage.source,
            heading=hit.passage.heading,
            start=hit.passage.start,
            end=hit.passage.end,
            score=hit.score,
            text=hit.passage.text,
            also=hit.also,
        )
        for number, hit in enumerate(hits, 1)
    )


def title(citation: Citation) -> str:
    """`[1] docs/wire.md › Wire v1 › One outcome`."""
    place = " › ".join(filter(None, (citation.source, *citation.heading.split(" > "))))
    return f"[{citation.number}] {place}"


def excerpt(text: str) -> Iterator[str]:
    """The first lines of a passage, verbatim, and a mark where they stop before its end."""
    shown = text[:_CHARACTERS]
    if len(shown) < len(text):
        shown = shown[: max(shown.rfind(" "), shown.rfind("\n"), _CHARACTERS // 2)]
    lines = [line for line in shown.splitlines() if line.strip()]
    yield from lines[:_LINES]
    if len(shown) < len(text) or len(lines) > _LINES:
        yield "…"


def request_for(question: str, passages: Sequence[Citation], models: Models) -> GenerateRequest:
    """What to ask the model: the question, and as many of the best passages as its context takes."""
    most = min(_ANSWER_TOKENS, models.context // 4)
    room = (models.context - most) * _CHARACTERS_PER_TOKEN - len(_INSTRUCTIONS) - len(question)
    shown: list[str] = []
    for passage in passages:
        text = f"{title(passage)}\n{passage.text}"
        room -= len(text)
        if shown and room < 0:
            break
        shown.append(text)
    asked = "\n\n".join((*shown, f"Question: {question}"))
    return GenerateRequest(
        messages=(
            ChatMessage(role="system", content=_INSTRUCTIONS),
            ChatMessage(role="user", content=asked),
        ),
        max_tokens=most,
    )


def cited(answer: str) -> tuple[int, ...]:
    """The numbers that an answer cites, each once, in order."""
    return tuple(sorted({int(number) for number in _CITATION.findall(answer)}))
