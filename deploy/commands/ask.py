"""`xnai ask`: the passages that answer a question, and where a model can give one, an answer citing them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xnai.deploy.output import say, show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.agents.inference import requests as inference
    from xnai.agents.retrieval.passages import Hit
    from xnai.bus import Bus
    from xnai.bus.sending import Order
    from xnai.deploy.answering import Answer, Citation

_PATIENCE = 120.0  # seconds that the model may be busy with others
_LONGEST_ANSWER = 900.0  # seconds
_IN_TIME = "The answer was cut off: it took longer than a quarter of an hour."
_EXAMPLES = """\
examples:
  xnai ask "How are conflicting updates resolved?"
  xnai ask "What does the with statement do?" --under pydoc: --limit 3
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "ask",
        help="find the passages that answer a question",
        description=(
            "Print the passages that answer a question best, each with its source, and an answer that cites "
            "them by number where a generation model is configured. Ctrl-C stops the answer."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--limit", type=_limit, default=5, metavar="N", help="how many passages; default: 5")
    parser.add_argument("--under", metavar="NAME", help="only sources at or below it: docs, pydoc:")


def _limit(text: str) -> int:
    from xnai.agents.retrieval.requests import MOST_HITS

    if not text.isdecimal() or not 1 <= int(text) <= MOST_HITS:
        raise argparse.ArgumentTypeError(f"it must be a number from 1 to {MOST_HITS}")
    return int(text)


async def run(arguments: argparse.Namespace) -> int:
    import msgspec

    from xnai.bus import open_bus
    from xnai.deploy.answering import Answer, citations, cited
    from xnai.deploy.waiting import until_interrupted

    as_json = arguments.json
    async with open_bus() as bus:
        hits = await search(bus, arguments.question, limit=arguments.limit, under=arguments.under)
        passages = citations(hits)
        if not as_json:
            show_passages(passages)
        order = await _order(bus, arguments.question, passages)
        said: list[inference.Answer] = []
        if order is not None:
            status = await until_interrupted(
                bus, order.id, lambda: _answer(bus, order, said, aloud=not as_json)
            )
            if status != Status.DONE:
                return status
    answer = Answer(question=arguments.question, passages=passages)
    for one in said:
        answer = msgspec.structs.replace(
            answer, answer=one.text, cited=cited(one.text), finish=one.finish, model=one.model
        )
    if as_json:
        show(answer, as_json=True)
    elif answer.answer is not None:
        _warn(answer)
    elif passages:
        say("There is no answer in words: [agents.inference.settings] of xnai.toml names no model.")
    return Status.DONE


async def search(bus: Bus, question: str, *, limit: int, under: str | None = None) -> list[Hit]:
    """The passages that come nearest to a question, best first."""
    from xnai.agents.retrieval.passages import Hit
    from xnai.agents.retrieval.requests import SearchRequest

    request = SearchRequest(query=question, limit=limit, under=under)
    return await bus.call("retrieval.search", request, list[Hit], timeout=_PATIENCE)


def show_passages(passages: Sequence[Citation]) -> None:
    """Print where each stands, how near it comes to the question, and its first lines."""
    from xnai.deploy.answering import excerpt, title

    if not passages:
        say("Nothing that is stored could answer. Take documents in with: xnai ingest PATH")
    for passage in passages:
        also = f", also in {', '.join(passage.also)}" if passage.also else ""
        lines = "".join(f"    {line}\n" for line in excerpt(passage.text))
        show(f"{title(passage)} ({passage.score:.2f}{also})\n{lines}", as_json=False)


async def _order(bus: Bus, question: str, passages: Sequence[Citation]) -> Order | None:
    """The order for an answer in words, if there is a model to give one and something to go by."""
    from xnai.agents.inference.requests import Models
    from xnai.bus.sending import make_order
    from xnai.deploy.answering import request_for

    models = await bus.call("inference.models", None, Models, timeout=_PATIENCE)
    if models.generation is None or not passages:
        return None
    request = request_for(question, passages, models)
    return make_order("inference.generate", request, lane="normal", ttl=_LONGEST_ANSWER)


async def _answer(bus: Bus, order: Order, said: list[inference.Answer], *, aloud: bool) -> int:
    """Print the answer as it comes, and keep what it was in the end."""
    from xnai.agents.inference.requests import Answer

    async for piece in bus.run_stream(order, str | Answer):
        if isinstance(piece, Answer):
            said.append(piece)
        elif aloud:
            print(piece, end="", flush=True)
    if aloud:
        show("", as_json=False)
    return Status.DONE


def _warn(answer: Answer) -> None:
    """Say where an answer leaves what it was given, and where it is not whole."""
    if answer.finish in ("length", "deadline"):
        say("The answer was cut off at its greatest length." if answer.finish == "length" else _IN_TIME)
    count = len(answer.passages)
    if not answer.cited:
        say("This answer cites no passage: compare it with them.")
    elif wrong := [f"[{number}]" for number in answer.cited if not 1 <= number <= count]:
        say(f"There is no passage {', '.join(wrong)}: compare the answer with those above.")
