"""The checker of the crash tests accepts what may have happened, and names what is wrong in the rest."""

from __future__ import annotations

import msgspec
from history import (
    AnyRecord,
    Asked,
    At,
    Followed,
    Heard,
    Killed,
    Returned,
    Rule,
    Sent,
    Started,
    Stored,
    Yielded,
    check,
    joined,
)
from hypothesis import given
from hypothesis import strategies as st

from xnai.protocol import TaskState

TASK, STREAM = "a-task", "a-stream"
CALLER, READER, LISTENER, WORKER = "caller", "reader", "listener", "worker"
CHUNKS = ("0", "1", "2", "3")

WORKING = Stored(id=TASK, sequence=10, kind="working", digest="w", attempt=2, instance="i")
STATUS = Stored(id=TASK, sequence=20, kind="status", digest="s", attempt=2, instance="i")
OUTCOME = Stored(
    id=TASK,
    sequence=40,
    kind="outcome",
    digest="o",
    attempt=2,
    instance="i",
    state=TaskState.COMPLETED,
    answer="14",
)
PLAIN: tuple[AnyRecord, ...] = (
    Sent(id=TASK),
    Asked(id=TASK, by=CALLER),
    Started(id=TASK, by=WORKER, attempt=1),
    At(id=TASK, by=WORKER, point="received"),
    Killed(id="", by=WORKER),
    Started(id=TASK, by="another worker", attempt=2),
    Heard(id=TASK, by=LISTENER, sequence=10, kind="working", digest="w"),
    Heard(id=TASK, by=LISTENER, sequence=20, kind="status", digest="s"),
    Heard(id=TASK, by=LISTENER, sequence=40, kind="outcome", digest="o"),
    Followed(id=TASK, by=LISTENER),
    Returned(id=TASK, by=CALLER, state=TaskState.COMPLETED, answer="14"),
    WORKING,
    STATUS,
    OUTCOME,
)

LOST = Stored(id=STREAM, sequence=30, kind="artifact", digest="a", attempt=1, instance="i", values=("0",))
FIRST = Stored(
    id=STREAM, sequence=50, kind="artifact", digest="b", attempt=2, instance="j", values=("0", "1", "2")
)
SECOND = Stored(
    id=STREAM, sequence=60, kind="artifact", digest="c", attempt=2, instance="j", index=3, values=("3",)
)
END = Stored(
    id=STREAM,
    sequence=70,
    kind="outcome",
    digest="e",
    attempt=2,
    instance="j",
    state=TaskState.COMPLETED,
    answer="[0,1,2,3]",
    chunks=4,
)
YIELDED: tuple[AnyRecord, ...] = tuple(Yielded(id=STREAM, by=READER, value=value) for value in CHUNKS)
TOLD = Returned(id=STREAM, by=READER, state=TaskState.COMPLETED)
STREAMED: tuple[AnyRecord, ...] = (
    Sent(id=STREAM),
    Asked(id=STREAM, by=READER),
    *YIELDED,
    TOLD,
    LOST,
    FIRST,
    SECOND,
    END,
)


def rules(*history: AnyRecord) -> set[Rule]:
    """The rules that a history breaks."""
    return {fault.rule for fault in check(history)}


def without(history: tuple[AnyRecord, ...], *left_out: AnyRecord) -> tuple[AnyRecord, ...]:
    return tuple(record for record in history if record not in left_out)


def instead(history: tuple[AnyRecord, ...], old: AnyRecord, **changes: object) -> tuple[AnyRecord, ...]:
    new = msgspec.structs.replace(old, **changes)
    return tuple(new if record == old else record for record in history)


def test_a_history_that_may_have_happened_is_accepted() -> None:
    assert check([*PLAIN, *STREAMED]) == []


def test_a_task_without_an_outcome_is_lost() -> None:
    assert rules(Sent(id=TASK), Started(id=TASK, by=WORKER, attempt=1)) == {Rule.NONE_LOST}


def test_a_caller_that_lives_and_was_not_told_lost_its_task() -> None:
    told = Returned(id=TASK, by=CALLER, state=TaskState.COMPLETED, answer="14")
    assert rules(*without(PLAIN, told)) == {Rule.NONE_LOST}
    assert rules(*without(PLAIN, told), Killed(id="", by=CALLER)) == set()


def test_an_answer_to_a_task_of_which_nothing_is_stored_is_found() -> None:
    assert rules(Returned(id=TASK, by=CALLER, state=TaskState.COMPLETED, answer="14")) == {Rule.NONE_LOST}


def test_a_second_outcome_is_found_even_if_it_says_the_same() -> None:
    assert rules(*without(PLAIN, *[r for r in PLAIN if isinstance(r, Followed)]), again(OUTCOME)) == {
        Rule.ONE_OUTCOME
    }


def again(stored: Stored) -> Stored:
    return msgspec.structs.replace(stored, sequence=990)


def test_what_was_heard_and_is_not_stored_is_found() -> None:
    never_stored = Heard(id=TASK, by="other", sequence=30, kind="status", digest="x")
    assert rules(*PLAIN, never_stored) == {Rule.HEARD_IS_STORED}


def test_what_was_heard_otherwise_than_it_is_stored_is_found() -> None:
    for change in ({"digest": "another"}, {"kind": "status"}, {"sequence": 50}):
        heard = Heard(id=TASK, by=LISTENER, sequence=40, kind="outcome", digest="o")
        assert Rule.HEARD_IS_STORED in rules(*instead(PLAIN, heard, **change))


def test_a_follower_that_missed_an_event_is_found_and_a_mere_listener_may_miss_some() -> None:
    missed = Heard(id=TASK, by=LISTENER, sequence=20, kind="status", digest="s")
    assert rules(*without(PLAIN, missed)) == {Rule.HEARD_IS_STORED}
    assert rules(*without(PLAIN, missed, Followed(id=TASK, by=LISTENER))) == set()


def test_an_answer_other_than_the_stored_one_is_found() -> None:
    told = Returned(id=TASK, by=CALLER, state=TaskState.COMPLETED, answer="14")
    assert rules(*instead(PLAIN, told, answer="15")) == {Rule.RETURNED_IS_STORED}
    assert rules(*instead(PLAIN, told, state=TaskState.FAILED)) == {Rule.RETURNED_IS_STORED}
    assert rules(*PLAIN, Returned(id=TASK, by="other", state="unavailable")) == {Rule.RETURNED_IS_STORED}


def test_only_a_stream_may_be_told_without_an_answer() -> None:
    told = Returned(id=TASK, by=CALLER, state=TaskState.COMPLETED, answer="14")
    assert rules(*instead(PLAIN, told, answer="")) == {Rule.RETURNED_IS_STORED}


def test_one_attempt_above_the_limit_is_accepted_and_two_are_not() -> None:
    starts = [Started(id=TASK, by=WORKER, attempt=number) for number in (3, 4, 5, 6)]
    assert rules(*PLAIN, *starts) == set()
    assert rules(*PLAIN, *starts, Started(id=TASK, by=WORKER, attempt=6)) == {Rule.ATTEMPTS}
    assert rules(*PLAIN, Started(id=TASK, by=WORKER, attempt=7)) == {Rule.ATTEMPTS}
    assert {fault.rule for fault in check(PLAIN, max_attempts=0)} == {Rule.ATTEMPTS}


def test_an_attempt_that_was_handed_back_does_not_count() -> None:
    returned = Stored(id=TASK, sequence=30, kind="returned", digest="r", attempt=2, instance="h")
    heard = Heard(id=TASK, by=LISTENER, sequence=30, kind="returned", digest="r")
    history = without(PLAIN, *(r for r in PLAIN if isinstance(r, Heard | Followed)))
    starts = [Started(id=TASK, by=WORKER, attempt=number) for number in (2, 3, 4, 5, 6)]
    assert rules(*history, *starts) == {Rule.ATTEMPTS}
    assert rules(*history, *starts, returned, heard) == set()


def test_events_that_were_heard_out_of_order_or_twice_are_found() -> None:
    one, two = (r for r in PLAIN if isinstance(r, Heard) and r.sequence in (10, 40))
    assert rules(*without(PLAIN, one, two), two, one) == {Rule.ORDER}
    assert rules(*PLAIN, two) == {Rule.ORDER}


def test_an_attempt_that_goes_on_when_it_is_over_is_found() -> None:
    history = without(PLAIN, *(r for r in PLAIN if isinstance(r, Heard | Followed)))
    failed = msgspec.structs.replace(STATUS, sequence=30, kind="failed")
    assert rules(*history, failed) == set()
    assert rules(*without(history, STATUS), failed, msgspec.structs.replace(STATUS, sequence=35)) == {
        Rule.ORDER
    }


def test_an_event_behind_the_outcome_is_found() -> None:
    history = without(PLAIN, *(r for r in PLAIN if isinstance(r, Heard | Followed)))
    assert rules(*history, again(STATUS)) == {Rule.NOTHING_AFTER_THE_END}


def test_a_chunk_that_a_reader_was_handed_twice_is_found() -> None:
    assert rules(*without(STREAMED, *YIELDED), *YIELDED[:2], *YIELDED[1:]) == {Rule.CHUNKS}


def test_a_chunk_that_a_reader_was_not_handed_is_found() -> None:
    for missing in YIELDED:
        assert rules(*without(STREAMED, missing)) == {Rule.CHUNKS}
    assert rules(*without(STREAMED, *YIELDED)) == {Rule.CHUNKS}


def test_chunks_that_a_reader_was_handed_out_of_order_are_found() -> None:
    assert rules(*without(STREAMED, *YIELDED), *reversed(YIELDED)) == {Rule.CHUNKS}


def test_a_reader_that_was_killed_may_lack_the_last_chunks_but_no_other() -> None:
    killed = without((*STREAMED, Killed(id="", by=READER)), TOLD)
    assert rules(*without(killed, *YIELDED[2:])) == set()
    assert rules(*without(killed, YIELDED[1])) == {Rule.CHUNKS}


def test_a_chunk_that_is_stored_twice_or_not_at_all_is_found() -> None:
    assert Rule.CHUNKS in rules(*STREAMED[:-1], msgspec.structs.replace(SECOND, sequence=65), END)
    assert Rule.CHUNKS in rules(*without(STREAMED, SECOND))
    assert Rule.CHUNKS in rules(*without(STREAMED, FIRST))
    assert Rule.CHUNKS in rules(*instead(STREAMED, SECOND, index=2))
    assert Rule.CHUNKS in rules(*instead(STREAMED, END, chunks=5))


def test_the_answer_of_a_stream_is_its_chunks() -> None:
    assert rules(*instead(STREAMED, END, answer="[0,1,2]")) == {Rule.CHUNKS}


def test_the_chunks_of_an_attempt_that_was_lost_are_not_counted() -> None:
    assert rules(*without(STREAMED, LOST)) == set()


@given(st.lists(st.text()))
def test_the_chunks_of_text_join_to_a_text(chunks: list[str]) -> None:
    as_json = [msgspec.json.encode(chunk).decode() for chunk in chunks]
    assert msgspec.json.decode(joined(as_json)) == ("".join(chunks) if chunks else [])


@given(st.permutations([*PLAIN, *STREAMED]))
def test_the_order_of_different_processes_does_not_matter(mixed: list[AnyRecord]) -> None:
    place = {id(record): number for number, record in enumerate([*PLAIN, *STREAMED])}
    own_order = {
        by: iter(sorted((r for r in mixed if getattr(r, "by", "") == by), key=lambda r: place[id(r)]))
        for by in {getattr(record, "by", "") for record in mixed}
    }
    assert check([next(own_order[getattr(record, "by", "")]) for record in mixed]) == []


@given(st.sets(st.sampled_from(range(len(PLAIN)))))
def test_the_checker_takes_any_part_of_a_history(left_out: set[int]) -> None:
    for fault in check([record for number, record in enumerate(PLAIN) if number not in left_out]):
        assert fault.id == TASK
        assert fault.text
