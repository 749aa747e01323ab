"""The bus's own wire, pinned: envelope, events, errors, subjects, names. `docs/wire.md` explains it."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path

import msgspec
import pytest
from a2a import types as official
from golden.wire_examples import (
    BODIES,
    SUBJECTS,
    envelope,
    error,
    event_subject,
    presence,
    short,
    task_subject,
)
from golden.write import HERE, golden_files
from google.protobuf.json_format import MessageToDict, Parse
from hypothesis import given
from hypothesis import strategies as st

from xnai.protocol import events, names, subjects
from xnai.protocol.a2a import TaskState, TaskStatusUpdateEvent
from xnai.protocol.envelope import Envelope, encode, read_envelope
from xnai.protocol.errors import DeadlineExceeded, InvalidName, MalformedMessage, TaskCanceled, TaskRejected
from xnai.protocol.events import ErrorInfo, Facts, as_exception, error_in, facts_of, outcome, read_body
from xnai.protocol.presence import Presence, read_card
from xnai.protocol.subjects import EventSubject, TaskSubject
from xnai.protocol.timestamps import format_timestamp, parse_timestamp

GOLDEN = golden_files()
DOCUMENT = Path(__file__).parent.parent / "docs" / "wire.md"

tokens = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True).filter(lambda name: name != names.SYSTEM)
ids = st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)


def golden(name: str) -> bytes:
    return (HERE / "wire" / name).read_bytes()


# The files


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_encoder_writes_the_golden_file_byte_for_byte(path: Path) -> None:
    assert path.read_bytes() == GOLDEN[path]


def test_no_golden_file_is_left_over() -> None:
    there = {*HERE.glob("*/*.json"), *HERE.glob("*/*.txt")}
    assert there == set(GOLDEN)


def test_every_function_that_spells_a_subject_is_pinned() -> None:
    functions = {
        name
        for name, function in inspect.getmembers(subjects, inspect.isfunction)
        if function.__module__ == subjects.__name__ and inspect.signature(function).return_annotation == "str"
    }
    constants = {name for name in vars(subjects) if name.isupper() and not name.startswith("_")}
    assert {use.split()[0] for use in SUBJECTS} == functions | constants


# The envelope


def test_the_full_example_sets_every_field_of_the_envelope() -> None:
    assert set(json.loads(golden("envelope.json"))) == set(Envelope.__struct_encode_fields__)


def test_an_envelope_comes_back_as_it_was_sent() -> None:
    assert read_envelope(golden("envelope.json"), task_subject) == envelope
    assert envelope.subject == task_subject


def test_what_an_envelope_leaves_out_is_the_default() -> None:
    read = read_envelope(golden("envelope_short.json"), short.subject)
    assert read == short
    assert (read.v, read.lane, read.depth, read.max_attempts, read.ancestors) == (1, "normal", 0, None, ())


def test_the_subject_beats_what_the_envelope_says() -> None:
    claimed = TaskSubject(agent="maths", lane="normal", sender="eve", skill="halve", id="other")
    read = read_envelope(golden("envelope.json"), claimed)
    assert read.subject == claimed
    assert read.message == envelope.message


def test_later_fields_of_an_envelope_are_ignored() -> None:
    later = b'{"colour":{"deep":[1]},' + golden("envelope.json")[1:]
    assert read_envelope(later, task_subject) == envelope


def test_an_envelope_of_another_version_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="version 2"):
        read_envelope(golden("envelope.json").replace(b'"v":1', b'"v":2'), task_subject)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"data":' + b"[" * 100_000,
        golden("envelope.json")[:-9],
        golden("envelope.json").replace(b"double", b"\xff"),
        golden("envelope.json").replace(
            b'"parts":[{"data":21,"mediaType":"application/json"}]', b'"parts":[]'
        ),
        golden("envelope.json").replace(b"ROLE_USER", b"user"),
        golden("envelope.json").replace(b'"depth":2', b'"depth":"2"'),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_bytes_that_are_no_envelope_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_envelope(data, task_subject)


@given(data=st.binary())
def test_any_bytes_are_an_envelope_or_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):  # random bytes never happen to be one
        read_envelope(data, task_subject)


# Events


@pytest.mark.parametrize("name", BODIES)
def test_the_body_of_an_event_comes_back_byte_for_byte(name: str) -> None:
    kind, _ = BODIES[name]
    data = golden(f"{name}.json").removesuffix(b"\n")
    assert encode(read_body(kind, data)) == data


def test_there_is_an_example_of_every_kind_of_event() -> None:
    kinds = {events.WORKING, events.STATUS, events.FAILED, events.RETURNED}
    kinds |= {events.ARTIFACT, events.INPUT, events.CANCEL, events.OUTCOME}
    assert {kind for kind, _ in BODIES.values()} == kinds


@pytest.mark.parametrize("name", BODIES)
def test_the_official_package_reads_the_body_of_an_event(name: str) -> None:
    _, body = BODIES[name]
    theirs = getattr(official, type(body).__name__)()
    assert MessageToDict(Parse(golden(f"{name}.json"), theirs)) == json.loads(golden(f"{name}.json"))


@pytest.mark.parametrize("name", BODIES)
def test_the_facts_of_an_event_survive_the_wire(name: str) -> None:
    kind, body = BODIES[name]
    assert facts_of(read_body(kind, golden(f"{name}.json"))) == facts_of(body)


def test_the_examples_set_every_fact() -> None:
    said = [body.metadata[events.EXTENSION] for _, body in BODIES.values() if body.metadata]
    assert set().union(*map(msgspec.to_builtins, said)) == set(Facts.__struct_fields__)


def test_foreign_metadata_gives_no_facts_and_no_error() -> None:
    message = envelope.message
    for metadata in (None, {}, {"other": 1}, {events.EXTENSION: 1}, {events.EXTENSION: {"attempt": "x"}}):
        assert facts_of(msgspec.structs.replace(message, metadata=metadata)) == Facts()


@pytest.mark.parametrize("kind", ["", "step", "Working", "outcome "])
def test_a_kind_that_is_not_known_is_refused(kind: str) -> None:
    with pytest.raises(MalformedMessage, match="no kind of event"):
        read_body(kind, golden("event_working.json"))


@pytest.mark.parametrize("kind", [events.WORKING, events.ARTIFACT, events.CANCEL, events.OUTCOME])
def test_the_body_of_another_kind_is_refused(kind: str) -> None:
    with pytest.raises(MalformedMessage):
        read_body(kind, golden("error.json"))


# Errors


def test_the_error_key_is_under_the_extension() -> None:
    assert list(json.loads(golden("error.json"))) == ["urn:xnai:agent-bus:v1/error"]


def test_an_error_survives_the_wire() -> None:
    body = read_body(events.FAILED, golden("event_failed.json"))
    assert isinstance(body, TaskStatusUpdateEvent)
    assert error_in(body.status) == error


@pytest.mark.parametrize(
    ("state", "code", "raised"),
    [
        (TaskState.CANCELED, "canceled", TaskCanceled),
        (TaskState.REJECTED, "unknown_skill", TaskRejected),
        (TaskState.FAILED, "deadline_exceeded", DeadlineExceeded),
    ],
)
def test_an_outcome_is_raised_as_the_error_that_it_carries(
    state: TaskState, code: str, raised: type[Exception]
) -> None:
    info = ErrorInfo(code=code, message="Because.", retryable=True)
    task = outcome(envelope, state, at="2026-11-21T09:30:00.250Z", facts=Facts(), error=info)
    stored = read_body(events.OUTCOME, encode(task))
    assert isinstance(stored, type(task))
    failed = as_exception(stored)
    assert type(failed) is raised
    assert (failed.code, str(failed), failed.retryable, failed.task) == (code, "Because.", True, stored)


# Subjects


@given(st.builds(TaskSubject, tokens, st.sampled_from(names.LANES), tokens, tokens, ids))
def test_the_subject_of_a_task_is_read_as_it_was_spelled(subject: TaskSubject) -> None:
    assert subjects.read_task(subjects.task(subject)) == subject


@given(st.builds(EventSubject, tokens, tokens, ids, tokens, tokens, tokens))
def test_the_subject_of_an_event_is_read_as_it_was_spelled(subject: EventSubject) -> None:
    assert subjects.read_event(subjects.event(subject)) == subject


def test_a_live_event_is_read_as_the_stored_one() -> None:
    stored = subjects.event(event_subject)
    live = stored.replace(".log.", ".live.")
    assert subjects.read_event(live) == event_subject
    assert subjects.stored_subject(live) == stored


def matches(pattern: str, subject: str) -> bool:
    """Whether a NATS pattern covers a subject: `*` is one token, a closing `>` the rest."""
    wanted, given_ = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, given_ = wanted[:-1], given_[: len(wanted) - 1]
    pairs = zip(wanted, given_, strict=False)
    return len(wanted) == len(given_) and all(want in ("*", token) for want, token in pairs)


@given(st.builds(EventSubject, tokens, tokens, ids, tokens, tokens, st.just("outcome")))
def test_the_patterns_cover_what_they_are_for(about: EventSubject) -> None:
    stored = subjects.event(about)
    live = stored.replace("xnai.v1.log.", "xnai.v1.live.", 1)
    for pattern in (
        subjects.log(about.agent),
        subjects.log(about.agent, about.sender, about.id),
        subjects.gate(about.agent, about.sender, about.id),
        subjects.outcomes(about.agent),
    ):
        assert matches(pattern, stored)
    for pattern in (
        subjects.live_destination(about.agent),
        subjects.live_of_instance(about.sender, about.instance),
        subjects.live_of_task(about.sender, about.id),
        subjects.live_kind(about.agent, about.kind),
    ):
        assert matches(pattern, live)
        assert not matches(pattern, stored)


@given(st.builds(TaskSubject, tokens, st.sampled_from(names.LANES), tokens, tokens, ids))
def test_the_patterns_of_a_queue_cover_its_tasks(to: TaskSubject) -> None:
    for pattern in (
        subjects.tasks(to.agent),
        subjects.tasks(to.agent, lane=to.lane),
        subjects.queued(to.agent, to.sender, to.id),
    ):
        assert matches(pattern, subjects.task(to))


@pytest.mark.parametrize("subject", ["", "xnai.v1.task", "xnai.v1.task.a.b.c.d", "a.b.c.d.e.f.g.h.i.j"])
def test_what_has_other_tokens_is_no_subject_of_ours(subject: str) -> None:
    with pytest.raises(MalformedMessage):
        subjects.read_task(subject)
    with pytest.raises(MalformedMessage):
        subjects.read_event(subject)


# The document


def test_the_document_spells_subjects_and_streams_as_the_code_does() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    event = EventSubject("<agent>", "<sender>", "<id>", "<instance>", "<writer>", "<kind>")
    for spelled in (
        subjects.task(TaskSubject("<agent>", "<lane>", "<sender>", "<skill>", "<id>")),
        subjects.event(event),
        subjects.event(event).replace(".log.", ".live."),
        subjects.gate("<agent>", "<sender>", "<id>"),
        subjects.live_of_instance("<sender>", "<instance>"),
        subjects.delta("<agent>", "<sender>", "<id>", instance="<instance>", writer="<writer>"),
        subjects.dead("<agent>", "<id>"),
        subjects.blob("<writer>", "<reader>", "<sha256>", "<n>"),
        subjects.task_stream("<agent>"),
        subjects.log_stream("<agent>"),
        subjects.DEAD_STREAM,
        subjects.BLOB_STREAM,
        events.EXTENSION,
        events.ERROR_KEY,
    ):
        assert f"`{spelled}`" in document or f"\n{spelled}`" in document or f'"{spelled}"' in document


def test_the_document_names_every_field_fact_and_kind() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    kinds = {kind for kind, _ in BODIES.values()}
    for name in {*Envelope.__struct_fields__, *Facts.__struct_fields__, *ErrorInfo.__struct_fields__, *kinds}:
        assert f"`{name}`" in document or f'"{name}"' in document, name


# Names

NO_TOKENS = [
    "",
    " ",
    "a b",
    "a.b",
    "*",
    ">",
    "a*",
    "A",
    "-a",
    "_a",
    "ä",
    "a\n",
    "a\x00",
    "a" * 65,
    "名",
    "a/b",
    "$a",
]
NO_IDS = ["", " ", "a b", "a.b", "*", ">", "a*", "ä", "a\n", "a\x00", "a" * 129, "a/b", "a+b", "a="]


@pytest.mark.parametrize("name", [*NO_TOKENS, names.SYSTEM])
def test_what_is_no_token_is_refused_as_a_name(name: str) -> None:
    with pytest.raises(InvalidName):
        names.check_name(name)


@pytest.mark.parametrize("text", NO_IDS)
def test_what_is_no_token_is_refused_as_an_id(text: str) -> None:
    with pytest.raises(InvalidName):
        names.check_id(text)


@pytest.mark.parametrize("lane", ["", "high", "Normal", "urgent ", "*"])
def test_there_are_three_lanes(lane: str) -> None:
    with pytest.raises(InvalidName):
        names.check_lane(lane)
    assert [names.check_lane(known) for known in names.LANES] == ["urgent", "normal", "background"]


@pytest.mark.parametrize(
    "to", ["", "maths", "maths.", ".double", "a.b.c", "maths.*", "system.double", "Maths.double"]
)
def test_what_is_no_agent_and_skill_is_refused_as_an_address(to: str) -> None:
    with pytest.raises(InvalidName):
        names.parse_address(to)


@given(agent=tokens, skill=tokens)
def test_an_address_is_an_agent_and_a_skill(agent: str, skill: str) -> None:
    assert names.parse_address(f"{agent}.{skill}") == (agent, skill)


def test_minted_ids_have_128_bits_and_instances_eight_characters() -> None:
    minted = {names.new_id() for _ in range(100)}
    assert len(minted) == 100
    assert {len(names.check_id(each)) for each in minted} == {22}
    assert {len(names.check_name(names.new_instance())) for _ in range(100)} == {8}


def test_no_minted_id_begins_with_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: b"\xfb\xe0" + bytes(size - 2))
    assert names.new_id() == "A" * 22  # behind two dashes


@given(text=st.text())
def test_any_login_name_becomes_a_token(text: str) -> None:
    assert names.as_token(text) == names.SYSTEM or names.check_name(names.as_token(text))


# Time


@given(milliseconds=st.integers(1_577_836_800_000, 2_114_380_800_000))  # 2020 to 2037
def test_a_timestamp_is_read_as_it_was_written(milliseconds: int) -> None:
    text = format_timestamp(milliseconds / 1000)
    assert abs(parse_timestamp(text) * 1000 - milliseconds) < 1.5
    assert format_timestamp(parse_timestamp(text)) == text


@pytest.mark.parametrize(
    "text", ["2026-11-21T09:30:00.250Z", "2026-11-21T09:30:00.250+00:00", "2026-11-21T10:30:00.250+01:00"]
)
def test_any_iso_8601_time_is_understood(text: str) -> None:
    assert format_timestamp(parse_timestamp(text)) == "2026-11-21T09:30:00.250Z"


@pytest.mark.parametrize("text", ["", "yesterday", "1763717400", "2026-13-01T00:00:00Z"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_timestamp(text)


# Cards


def test_the_instance_behind_a_card_is_read_from_it() -> None:
    card, read = read_card(golden("card.json"))
    assert read == presence
    assert card.capabilities.extensions[-1].uri == events.EXTENSION


def test_what_a_probe_answers_comes_back() -> None:
    assert msgspec.json.decode(golden("presence.json"), type=Presence) == presence
