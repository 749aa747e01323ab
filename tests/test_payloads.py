"""Between Python values and parts: each kind of value comes back as it was, or is refused in one sentence."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import anyio
import msgspec
import pydantic
import pytest

from xnai.agents import Agent, Context
from xnai.agents.testing import running
from xnai.bus import Bus
from xnai.protocol import InvalidPayload, InvalidResult, Message, Part, TaskFailed, TaskRejected
from xnai.protocol.a2a import NO_DATA, Role
from xnai.protocol.payload import BYTES, JSON, Codec, codec_of, part_of, parts_of

EVERY_BYTE = bytes(range(256))
DEEP = b"[" * 100_000 + b"]" * 100_000


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@dataclass
class Pair:
    x: int
    y: str = "a"


class Point(msgspec.Struct, frozen=True):
    x: int
    inner: tuple[Point, ...] = ()


class Reading(msgspec.Struct):
    value: float | None


class Invoice(pydantic.BaseModel):
    number: int
    when: datetime | None = None
    lines: list[str] = []


class Options(TypedDict):
    size: int


class Named(NamedTuple):
    x: int
    y: str


class Unknown:
    """Nothing that anybody could write as JSON."""


def data(written: bytes) -> Part:
    return Part(data=msgspec.Raw(written), media_type=JSON)


def plain(part: Part) -> object:
    """The data of a part as any reader of JSON sees it."""
    return json.loads(bytes(part.data))


# Values to parts


@pytest.mark.parametrize("text", ["", "x", "ä€😀", "null", "5", '{"x": 1}', "\x00\n\u2028"])
def test_text_is_a_text_part_as_it_is(text: str) -> None:
    part = part_of(text)
    assert part.text == text
    assert part.raw is None
    assert part.data is NO_DATA


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_any_kind_are_a_raw_part(kind: Callable[[bytes], object]) -> None:
    for content in (b"", EVERY_BYTE):
        part = part_of(kind(content))
        assert part.raw == content
        assert type(part.raw) is bytes
        assert part.media_type == BYTES


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        (True, True),
        (0, 0),
        (-1.5, -1.5),
        (2**64, 2**64),
        (-(10**40), -(10**40)),
        ([1, "a", None], [1, "a", None]),
        ((1, 2), [1, 2]),
        ({"a": {"b": []}}, {"a": {"b": []}}),
        ({1: "x"}, {"1": "x"}),
        ([b"\x00\xff"], ["AP8="]),
        (Pair(1), {"x": 1, "y": "a"}),
        (Point(1), {"x": 1, "inner": []}),
        (Invoice(number=1), {"number": 1, "when": None, "lines": []}),
        ([Invoice(number=1)], [{"number": 1, "when": None, "lines": []}]),
        ({"a": Invoice(number=1)}, {"a": {"number": 1, "when": None, "lines": []}}),
        (Mood.GOOD, "good"),
        (Named(1, "a"), [1, "a"]),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.50"), "1.50"),
    ],
    ids=repr,
)
def test_everything_else_is_json(value: object, written: object) -> None:
    part = part_of(value)
    assert part.media_type == JSON
    assert part.text is None
    assert plain(part) == written


def test_a_part_and_a_message_stay_as_they_are() -> None:
    part = Part(text="x", filename="x.txt", media_type="text/markdown", metadata={"a": 1})
    assert part_of(part) is part
    several = (part, Part(raw=b"y"), data(b"[1]"))
    assert parts_of(Message(message_id="m", role=Role.USER, parts=several)) == several
    assert parts_of(part) == (part,)


TORN = [
    "\ud800",
    Part(text="\ud800"),
    Part(url="\ud800"),
    Part(text="a", filename="\ud800"),
    Part(text="a", media_type="\ud800"),
    Part(text="a", metadata={"a": "\ud800"}),
]


@pytest.mark.parametrize("value", TORN, ids=["alone", "text", "url", "file name", "media type", "metadata"])
def test_text_that_is_no_unicode_is_refused_wherever_it_stands(value: object) -> None:
    with pytest.raises(InvalidPayload, match="surrogates"):
        part_of(value)


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "object"),
        (Unknown(), "Unknown"),
        ([Unknown()], "Unknown"),
        ({"a": Unknown()}, "Unknown"),
        (lambda: None, "function"),
        (iter([1]), "list_iterator"),
        (1j, "complex"),
        (Path("x"), "Path"),
        (ValueError("x"), "ValueError"),
        (int, "type"),
        ({(1, 2): 3}, "tuple"),
        ({None: 1}, "NoneType"),
        (["\ud800"], "surrogates"),
        ({"\udfff": 1}, "surrogates"),
        (circle(), "recursion"),
        (math.nan, "NaN"),
        ([1.0, -math.inf], "infinity"),
        ({"a": [None, {"b": math.inf}]}, "infinity"),
        (Reading(math.nan), "NaN"),
        (msgspec.Raw(b"{bad"), "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_json_is_refused_with_the_reason(value: object, why: str) -> None:
    with pytest.raises(InvalidPayload, match=f"cannot be sent: .*{why}") as caught:
        part_of(value)
    assert caught.value.code == "invalid_payload"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("written", [b"{", b"[1,]", b"NaN", b"'x'", b"1 2", b'"\xff"', DEEP])
def test_a_part_whose_data_are_no_json_is_refused(written: bytes) -> None:
    with pytest.raises(InvalidPayload, match="no JSON"):
        part_of(data(written))
    with pytest.raises(InvalidPayload, match="no JSON"):
        parts_of(Message(message_id="m", role=Role.USER, parts=(Part(text="fine"), data(written))))


# And back

ROUND_TRIPS: list[tuple[Any, Any]] = [
    (str, "x"),
    (str, ""),
    (bytes, EVERY_BYTE),
    (bytes, b""),
    (bytearray, bytearray(b"x")),
    (int, -5),
    (int, 2**64),
    (int, 10**40),
    (float, 1.5),
    (float, 5e-324),
    (float, 1e308),
    (bool, True),
    (None, None),
    (Any, None),
    (Any, "x"),
    (Any, b"x"),
    (Any, [1, {"a": None}]),
    (object, {"a": [1]}),
    (Pair, Pair(2, "b")),
    (Point, Point(1, (Point(2),))),
    (Invoice, Invoice(number=1, when=datetime(2026, 1, 2, tzinfo=UTC), lines=["a"])),
    (Options, {"size": 1}),
    (Named, Named(1, "a")),
    (Mood, Mood.BAD),
    (Literal["a", "b"], "b"),
    (str | None, None),
    (str | None, "x"),
    (str | None, "null"),
    (bytes | None, b"x"),
    (int | None, None),
    (int | None, 3),
    (int | str, 5),
    (int | str, "5"),
    (Point | None, Point(1)),
    (Point | None, None),
    (Invoice | None, Invoice(number=2)),
    (Invoice | None, None),
    (Point | list[int] | str, [1]),
    (list[int], []),
    (list[Invoice], [Invoice(number=1), Invoice(number=2)]),
    (list[bytes], [EVERY_BYTE, b""]),
    (dict[str, Point], {"a": Point(1)}),
    (dict[int, str], {1: "a"}),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2}),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
    (UUID, UUID(int=7)),
    (Decimal, Decimal("0.10")),
    (Part, Part(text="x", filename="x.txt")),
]


@pytest.mark.parametrize(("kind", "value"), ROUND_TRIPS, ids=lambda value: repr(value)[:40])
def test_a_value_comes_back_as_it_was(kind: Any, value: Any) -> None:
    codec: Codec[Any] = codec_of(kind)
    back = codec.read(codec.write(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("kind", "part", "value"),
    [
        (float, data(b"2"), 2.0),
        (int, data(b" 5 "), 5),
        (str, data(b'"x"'), "x"),
        (bytes, data(b'"AP8="'), b"\x00\xff"),
        (Pair, data(b'{"x":1}'), Pair(1)),
        (Pair, data(b'{"x":1,"later":[2]}'), Pair(1)),
        (Invoice, data(b'{"number":"1"}'), Invoice(number=1)),
        (datetime, Part(text="2026-01-02T00:00:00Z"), datetime(2026, 1, 2, tzinfo=UTC)),
        (Mood, Part(text="good"), Mood.GOOD),
        (str, Part(url="nats://x"), "nats://x"),
        (Any, Part(raw=b"x"), b"x"),
        (Decimal, data(b"1.50"), Decimal("1.50")),
    ],
)
def test_what_another_writer_may_have_sent_is_read(kind: Any, part: Part, value: object) -> None:
    assert codec_of(kind).read((part,)) == value


def test_a_type_of_part_or_message_gets_what_was_sent() -> None:
    parts = (Part(text="a"), Part(raw=b"b"))
    sent = Message(message_id="m", role=Role.USER, parts=parts, metadata={"x": 1})
    assert codec_of(Part).read(parts) is parts[0]
    assert codec_of(Message).read(parts, sent) is sent
    assert codec_of(Message).read(parts).parts == parts
    assert codec_of(Message).write(sent) == parts


MISFITS: list[tuple[Any, Part]] = [
    (bytes, Part(text="eA==")),
    (bytes, Part(text="")),
    (bytes | None, Part(text="eA==")),
    (bytearray, Part(text="eA==")),
    (bytes, Part(url="nats://x")),
    (bytes, data(b'"not base64"')),
    (str, Part(raw=b"x")),
    (str | None, Part(raw=b"x")),
    (int, Part(raw=b"5")),
    (int, Part(text="5")),
    (int, data(b'"5"')),
    (int, data(b"5.5")),
    (int, data(b"true")),
    (int, data(b"null")),
    (int, data(b"9" * 5000)),
    (bool, data(b"1")),
    (float, data(b"1e999")),
    (float, data(b"NaN")),
    (None, data(b"0")),
    (None, Part(text="")),
    (str, data(b"null")),
    (str, data(b'"\xff"')),
    (str, data(b'"\\ud800"')),
    (Pair, Part(text='{"x":1}')),
    (Pair, data(b'{"y":"a"}')),
    (Point, data(b'{"x":"1"}')),
    (Point, data(b"[]")),
    (Invoice, data(b'{"number":"one"}')),
    (Invoice, data(b"[]")),
    (Invoice, Part(text='{"number":1}')),
    (Mood, data(b'"odd"')),
    (Literal["a"], Part(text="b")),
    (list[int], data(b'[1,"a"]')),
    (list[int], Part(text="[1]")),
    (tuple[int, str], data(b"[1]")),
    (int | None, data(b'"x"')),
    (Any, data(b"{")),
    (Any, data(b"1 2")),
    (Any, data(DEEP)),
    (list[Any], data(DEEP)),
    (Invoice, data(b'{"number":' + DEEP + b"}")),
]


@pytest.mark.parametrize(("kind", "part"), MISFITS, ids=lambda value: repr(value)[:40])
def test_what_is_of_another_type_is_refused_with_the_reason(kind: Any, part: Part) -> None:
    with pytest.raises(InvalidPayload, match="This is no") as caught:
        codec_of(kind).read((part,))
    assert caught.value.code == "invalid_payload"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, "5"),
        (int, True),
        (int, 5.5),
        (float, math.nan),
        (float | None, math.inf),
        (str, "\ud800"),
        (str, b"x"),
        (bytes, "x"),
        (None, 0),
        (str, None),
        (list[int], ["a"]),
        (list[int], "[1]"),
        (Point, Invoice(number=1)),
        (Mood, "odd"),
        (int, Unknown()),
        (Any, Unknown()),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_written_must_be_of_the_type(kind: Any, value: Any) -> None:
    codec: Codec[Any] = codec_of(kind)
    with pytest.raises(InvalidPayload):
        codec.write(value)


@pytest.mark.parametrize(
    "kind",
    [
        5,
        "int",
        lambda x: x,
        bytes | str,
        Pair | Point,
        int | Invoice,
        Path,
        complex,
        list[Path],
        Iterator[int],
        Part | None,
        Message | None,
    ],
)
def test_what_is_no_type_of_a_payload_is_refused(kind: Any) -> None:
    with pytest.raises(InvalidPayload, match="is no type of a payload"):
        codec_of(kind)


def test_a_message_without_parts_holds_no_value() -> None:
    with pytest.raises(InvalidPayload, match="no parts"):
        codec_of(int).read(())


def test_a_codec_is_made_once() -> None:
    assert codec_of(list[int]) is codec_of(list[int])


# Over the bus

odd = Agent("odd")


@odd.skill
async def echo(value: Any) -> Any:
    return value


@odd.skill
async def invoice(given: Invoice) -> Invoice:
    return given.model_copy(update={"number": given.number + 1})


@odd.skill
async def point(given: Point | None) -> Point | None:
    return Point(given.x, (given,)) if given else None


@odd.skill
async def reverse(given: bytes) -> bytes:
    return given[::-1]


@odd.skill
async def nothing() -> None:
    return


@odd.skill
async def message(given: Message, ctx: Context) -> list[str | None]:
    assert ctx.task.message.parts == given.parts
    return [part.text or part.filename for part in given.parts]


@odd.skill
async def part(given: Part) -> Part:
    return Part(raw=(given.text or "").encode(), filename=given.filename, media_type="text/plain")


@odd.skill
async def wrong() -> int:
    value: Any = "seven"
    return value  # type: ignore[no-any-return]  # that is the fault


@odd.skill
async def not_a_number() -> float:
    return math.nan


@odd.skill
async def torn() -> str:
    return "half an \ud83d"


@odd.skill
async def torn_stream() -> AsyncIterator[str]:
    yield "whole"
    yield "half an \ud83d"


@odd.skill(max_attempts=1)
async def torn_error() -> None:
    raise FileNotFoundError("name\udcff")


@odd.skill
async def torn_progress(ctx: Context) -> list[str]:
    said = []
    for tell in (ctx.progress("\udcff"), ctx.artifact("x", "\udcff")):
        try:
            await tell
        except InvalidPayload as error:
            said.append(error.code)
    return said


async def refusal(bus: Bus, to: str, payload: object) -> TaskRejected:
    with pytest.raises(TaskRejected) as caught:
        await bus.call(to, payload)
    assert caught.value.code == "invalid_payload"
    return caught.value


async def test_values_of_every_kind_pass_both_ways() -> None:
    values: list[tuple[Any, Any]] = [
        (str, "ä😀"),
        (bytes, EVERY_BYTE),
        (int, 2**64),
        (dict[str, list[int]], {"a": [1]}),
        (Pair, Pair(1)),
        (Point, Point(1)),
        (Invoice, Invoice(number=1)),
        (str | None, None),
        (str | None, "x"),
        (None, None),
    ]
    with anyio.fail_after(10):
        async with running(odd) as bus:
            for kind, value in values:
                assert await bus.call("odd.echo", value, kind) == value
            assert await bus.call("odd.invoice", Invoice(number=1), Invoice) == Invoice(number=2)
            assert await bus.call("odd.invoice", {"number": 1}, dict[str, Any]) == {
                "number": 2,
                "when": None,
                "lines": [],
            }
            assert await bus.call("odd.point", Point(1), Point) == Point(1, (Point(1),))
            assert await bus.call("odd.point", None) is None
            assert await bus.call("odd.reverse", b"ab\x00", bytes) == b"\x00ba"
            assert await bus.call("odd.nothing") is None


async def test_parts_and_messages_pass_both_ways() -> None:
    with anyio.fail_after(10):
        async with running(odd) as bus:
            answer = await bus.call("odd.part", Part(text="hi", filename="hi.txt"), Part)
            assert (answer.raw, answer.filename, answer.media_type) == (b"hi", "hi.txt", "text/plain")
            said = Message(
                message_id="mine",
                role=Role.USER,
                parts=(Part(text="a"), Part(raw=b"x", filename="b")),
                metadata={"k": "v"},
            )
            assert await bus.call("odd.message", said, list[str]) == ["a", "b"]
            whole = await bus.call("odd.echo", "x", Message)
            assert whole.parts[0].text == "x"


async def test_text_is_refused_where_bytes_are_asked_for() -> None:
    with anyio.fail_after(10):
        async with running(odd) as bus:
            error = await refusal(bus, "odd.reverse", "eA==")
            assert "Expected `bytes`, got `str`" in str(error)
            with pytest.raises(InvalidResult, match="got `str`"):
                await bus.call("odd.echo", "eA==", bytes)
            with pytest.raises(InvalidResult, match="holds bytes"):
                await bus.call("odd.echo", b"x", str)


async def test_a_field_that_does_not_fit_is_named() -> None:
    with anyio.fail_after(10):
        async with running(odd) as bus:
            assert "number" in str(await refusal(bus, "odd.invoice", {"number": "one"}))
            assert "$.x" in str(await refusal(bus, "odd.point", {"x": "one"}))
            assert "inner" in str(await refusal(bus, "odd.point", {"x": 1, "inner": [{"x": None}]}))


async def test_an_answer_that_does_not_fit_its_declaration_is_an_error_of_the_agent() -> None:
    with anyio.fail_after(10):
        async with running(odd) as bus:
            for skill in ("wrong", "not_a_number", "torn", "torn_stream"):
                with pytest.raises(TaskFailed) as caught:
                    await bus.call(f"odd.{skill}")
                assert caught.value.code == "invalid_result"
                assert f"{skill} answered something else" in str(caught.value)


async def test_text_that_is_no_unicode_ends_its_task_and_nothing_else() -> None:
    with anyio.fail_after(10):
        async with running(odd) as bus:
            with pytest.raises(TaskFailed, match=r"FileNotFoundError: name\?"):
                await bus.call("odd.torn_error")
            assert set(await bus.call("odd.torn_progress", None, list[str])) <= {"invalid_payload"}
            with pytest.raises(InvalidPayload):
                await bus.call("odd.echo", "\ud800")
            assert await bus.call("odd.echo", 1, int) == 1


async def test_what_cannot_be_written_is_refused_before_anything_is_sent() -> None:
    with anyio.fail_after(10):
        async with running(odd) as bus:
            for value in (object(), [Unknown()], circle(), data(b"{"), ["\ud800"]):
                for send in (bus.call, bus.send):
                    with pytest.raises(InvalidPayload):
                        await send("odd.echo", value, id="never")
            assert await bus.finder.find("never") is None


def test_what_pydantic_says_becomes_one_line_without_a_link() -> None:
    with pytest.raises(InvalidPayload) as caught:
        codec_of(Invoice).read((data(b'{"number":"one","lines":3}'),))
    assert str(caught.value) == (
        "This is no Invoice: number: Input should be a valid integer, unable to parse string as an integer; "
        "lines: Input should be a valid list."
    )
