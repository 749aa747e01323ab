"""The soak in small, and that its book sees what it is there to see."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from gguf_models import write_model

from benchmarks.soak.__main__ import told as lines_of
from benchmarks.soak.book import Book, Memory, Verdict
from benchmarks.soak.callers import Told
from benchmarks.soak.cases import SENDERS, Case, Mix
from benchmarks.soak.run import Plan, Report, soak
from xnai.agents.inference.requests import Answer, Embeddings, GenerateRequest, TokenLogprob
from xnai.protocol import TaskState

CASE = Case(kind="plain", payload=GenerateRequest(prompt="a", max_tokens=4), same="a")
ANSWER = Answer(text="told", finish="length", model="m", hash="", tokens_in=1, tokens_cached=0, tokens_out=4)


async def test_everything_at_once_breaks_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", seed=1, context=1_024)
    report = await soak(Plan(model=model, seconds=0.0, requests=150, callers=12, kills=1, queue=16))
    assert report.holds, "\n".join(lines_of(report))


# What is asked


def test_the_same_seed_asks_the_same() -> None:
    one, same, other = (Mix(seed, context=512, queue=4) for seed in (7, 7, 8))
    assert one.references == same.references != other.references
    asked = [one.next() for _ in range(300)]
    assert asked == [same.next() for _ in range(300)]
    cases = [case for group in asked for case in group]
    assert {case.sender for case in cases} == set(SENDERS)
    assert {case.lane for case in cases} == {"urgent", "normal", "background"}
    assert len({case.kind for case in cases}) > 15


# What the book sees


def told(number: int = 0, **more: object) -> Told:
    made = Told(case=CASE, id=f"t{number}", outcome="length", value=ANSWER, began=10.0, took=2.0)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def faults(*all_told: Told, kills: tuple[float, ...] = ()) -> list[str]:
    book = Book()
    book.kills = list(kills)
    for each in all_told:
        book.write(each)
    return book.faults


def test_what_may_come_of_a_request_is_no_fault() -> None:
    assert faults(told(0), told(1, chunks="told"), told(2, outcome="refused busy", value=None)) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (told(outcome="no outcome", value=None), "it ended as no outcome"),
        (told(outcome="failed inference_failed", value=None), "it ended as failed inference_failed"),
        (told(outcome="canceled", value=None), "it ended as canceled"),
        (told(chunks="to"), "its chunks make 'to'"),
        (told(value=msgspec.structs.replace(ANSWER, tokens_out=5)), "5 tokens are more than 4"),
        (
            told(
                case=msgspec.structs.replace(CASE, kind="stop string"),
                value=msgspec.structs.replace(ANSWER, text="the"),
            ),
            "breaks the rule",
        ),
    ],
)
def test_what_may_not_come_of_a_request_is_a_fault(wrong: Told, words: str) -> None:
    (fault,) = faults(wrong)
    assert words in fault


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("schema", '{"ok":true,"n":99}', '{"ok":1,"n":true}'),
        ("schema", '{"n":0,"ok":false}', '{"ok":true,"n":100}'),
        ("schema", '{"n":7,"ok":false}', '{"ok":true}'),
        ("regex", "abc", "ab1"),
        ("regex", "ab", "a"),
    ],
)
def test_a_text_that_breaks_its_rule_is_a_fault(kind: str, good: str, bad: str) -> None:
    case = msgspec.structs.replace(CASE, kind=kind, may=frozenset({"stop"}))
    texts = [msgspec.structs.replace(ANSWER, finish="stop", text=text) for text in (good, bad)]
    found = [faults(told(case=case, outcome="stop", value=value)) for value in texts]
    assert [len(each) for each in found] == [0, 1]


def test_a_poisoned_request_is_one_during_which_the_engine_was_killed_twice() -> None:
    poisoned = told(outcome="refused poison", value=None)
    assert faults(poisoned, kills=(10.5, 11.5)) == []
    assert len(faults(told(outcome="refused poison", value=None), kills=(9.0, 11.5))) == 1


def test_an_answer_that_is_another_one_than_alone_is_a_mismatch() -> None:
    book = Book()
    for number, text in enumerate(("told", "told", "tolb")):
        book.write(told(number, value=msgspec.structs.replace(ANSWER, text=text)))
    assert book.same_answers() == Verdict(
        "answers as alone", holds=False, seen="1 of 2 differ, and 0 by a tie"
    )
    case = Case(kind="embed", skill="embed", payload=["a"], same="v", may=frozenset({"vectors"}))
    for number, value in enumerate((0.5, 0.5001, 0.6), start=3):
        vectors = Embeddings(model="m", vectors=[[value]])
        book.write(told(number, case=case, outcome="vectors", value=vectors))
    assert book.same_answers().seen == "2 of 4 differ, and 0 by a tie"


@pytest.mark.parametrize(("gap", "ties"), [(0.01, 1), (0.2, 0)])
def test_a_token_that_was_as_likely_as_another_is_no_mismatch(gap: float, ties: int) -> None:
    book = Book()
    likely = [
        TokenLogprob(token, -1.0, top=((token, -1.0), ("x", -1.0 - by)))
        for token, by in (("to", 1), ("ld", gap))
    ]
    book.write(told(0, value=msgspec.structs.replace(ANSWER, logprobs=tuple(likely))))
    book.write(told(1, value=msgspec.structs.replace(ANSWER, text="tox")))
    book.write(told(2, value=msgspec.structs.replace(ANSWER, text="x")))
    assert (book.ties, len(book.mismatches)) == (ties, 2 - ties)


@pytest.mark.parametrize(
    ("states", "holds"),
    [
        ({"t0": TaskState.COMPLETED, "t1": TaskState.CANCELED}, True),
        ({"t0": TaskState.COMPLETED}, False),
        ({"t0": TaskState.COMPLETED, "t1": TaskState.CANCELED, "t2": TaskState.COMPLETED}, False),
        ({"t0": TaskState.FAILED, "t1": TaskState.CANCELED}, False),
        ({"t0": TaskState.COMPLETED, "t1": TaskState.COMPLETED}, False),
    ],
)
def test_each_request_has_the_one_outcome_that_was_told(states: dict[str, TaskState], holds: bool) -> None:
    book = Book()
    for each in (told(0), told(1, outcome="canceled", value=None)):
        book.write(each)
    rows = {(CASE.sender, id): state for id, state in states.items()}
    assert book.outcomes(rows).holds is holds


@pytest.mark.parametrize(("growth", "holds"), [(0.0, True), (0.004, True), (0.05, False)])
def test_memory_that_grows_with_the_requests_is_seen_through_restarts(growth: float, holds: bool) -> None:
    book = Book()
    for second in range(400):
        book.write(told(second, began=float(second), value=None, outcome="refused busy"))
        young = 50 * (second % 100 < 10)  # each engine is small at first
        size = 200 + growth * second + second % 3 - young
        book.memory.append(Memory(float(second), size, size, second // 100))
    verdict = book.steady("engine", warm=50.0, bound=100.0)
    assert verdict.holds is holds, verdict
    assert book.steady("engine", warm=390.0, bound=0.0).seen == "too short to say"


def test_the_report_ends_with_the_verdict_on_all() -> None:
    good, bad = Verdict("a", holds=True, seen="x"), Verdict("b", holds=False, seen="y")
    assert lines_of(Report(lines=["l"], verdicts=[good])) == ["l", "holds   a: x", "verdict: all holds"]
    assert lines_of(Report(lines=[], verdicts=[good, bad]))[-2:] == ["BROKEN  b: y", "verdict: BROKEN"]
