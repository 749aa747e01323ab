"""Our A2A objects against the official SDK's protobuf JSON, in both directions and field by field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from a2a import types as official
from golden.examples import A2A
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict, MessageToJson, Parse, ParseDict
from google.protobuf.message import Message as Protobuf
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xnai.protocol import a2a, card
from xnai.protocol.a2a import A2AObject, Artifact, Message, Part, Role, Task, TaskState, TaskStatus
from xnai.protocol.card import AgentCapabilities, AgentSkill, ClientCredentialsOAuthFlow, SecurityScheme

ROOTS = ("Message", "Task", "TaskStatusUpdateEvent", "TaskArtifactUpdateEvent", "AgentCard")


def is_required(field: FieldDescriptor) -> bool:
    return "REQUIRED" in str(field.GetOptions())


def choice_of(field: FieldDescriptor) -> str | None:
    """The `oneof` that the field is in; that of an `optional` field is made up and begins with _."""
    name = field.containing_oneof.name if field.containing_oneof else None
    return None if name is None or name.startswith("_") else name


def contained(descriptor: Descriptor, seen: dict[str, Descriptor]) -> None:
    """Add a message type and all that it contains to `seen`."""
    if descriptor.full_name.startswith("google.") or descriptor.name in seen:
        return
    if not descriptor.GetOptions().map_entry:
        seen[descriptor.name] = descriptor
    for field in descriptor.fields:
        if field.message_type:
            contained(field.message_type, seen)


def all_descriptors() -> dict[str, Descriptor]:
    seen: dict[str, Descriptor] = {}
    for name in ROOTS:
        contained(getattr(official, name).DESCRIPTOR, seen)
    return seen


DESCRIPTORS = all_descriptors()


def ours(name: str) -> type[A2AObject]:
    found: type[A2AObject] = getattr(a2a, name, None) or getattr(card, name)
    return found


def is_object(kind: object) -> bool:
    shared = (a2a.A2AObject, card.CardObject)
    return isinstance(kind, type) and issubclass(kind, A2AObject) and kind not in shared


def read(data: bytes | str, kind: type[A2AObject]) -> Any:
    return msgspec.json.decode(data, type=kind)


def official_of(kind: type[A2AObject]) -> Protobuf:
    """An empty message of the official type; the SDK does not export a class for every one."""
    message: Protobuf = GetMessageClass(DESCRIPTORS[kind.__name__])()
    return message


# The types


def test_our_types_are_the_official_ones_and_no_others() -> None:
    objects = {kind for kind in (*vars(a2a).values(), *vars(card).values()) if is_object(kind)}
    assert {kind.__name__ for kind in objects} == set(DESCRIPTORS)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_every_field_of_every_type_is_ours_in_the_same_order(name: str) -> None:
    asked = tuple(field.json_name for field in DESCRIPTORS[name].fields)
    assert ours(name).__struct_encode_fields__ == asked


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_what_the_specification_requires_is_required(name: str) -> None:
    required = {field.encode_name for field in msgspec.structs.fields(ours(name)) if field.required}
    asked = {field.json_name for field in DESCRIPTORS[name].fields if is_required(field)}
    assert required == asked - {"scopes"}  # protobuf does not write an empty map: a reader cannot ask for it


def test_every_state_and_role_is_ours() -> None:
    states, roles = official.TaskState.DESCRIPTOR, official.Role.DESCRIPTOR
    assert {state.value for state in TaskState} == set(states.values_by_name)
    assert {role.value for role in Role} == set(roles.values_by_name)


def test_four_states_are_terminal() -> None:
    ended = {TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED, TaskState.REJECTED}
    assert {state for state in TaskState if state.terminal} == ended


# The examples


def test_there_is_an_example_of_every_type() -> None:
    assert {type(example).__name__ for example in A2A.values()} == set(DESCRIPTORS)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_the_examples_set_every_field(name: str) -> None:
    written = [
        json.loads(msgspec.json.encode(example)) for example in A2A.values() if type(example).__name__ == name
    ]
    descriptor = DESCRIPTORS[name]
    assert set().union(*written) == {field.json_name for field in descriptor.fields}
    alone = {field.json_name for field in descriptor.fields if choice_of(field) is None}
    assert any(alone <= set(example) for example in written)


@pytest.mark.parametrize("name", A2A)
def test_the_official_package_reads_an_example_as_we_wrote_it(name: str) -> None:
    data = msgspec.json.encode(A2A[name])
    theirs = Parse(data, official_of(type(A2A[name])))
    assert MessageToDict(theirs) == json.loads(data)


@pytest.mark.parametrize("name", A2A)
def test_we_read_an_example_as_the_official_package_writes_it(name: str) -> None:
    data = msgspec.json.encode(A2A[name])
    theirs = MessageToDict(ParseDict(json.loads(data), official_of(type(A2A[name]))))
    again = msgspec.json.encode(read(json.dumps(theirs), type(A2A[name])))
    assert json.loads(again) == theirs


@pytest.mark.parametrize("name", A2A)
def test_an_example_comes_back_byte_for_byte(name: str) -> None:
    data = msgspec.json.encode(A2A[name])
    assert read(data, type(A2A[name])) == A2A[name]
    assert msgspec.json.encode(read(data, type(A2A[name]))) == data


# Anything that the official types can hold

text = st.text(max_size=20)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
timestamps = st.datetimes().map(lambda moment: moment.isoformat(timespec="milliseconds") + "Z")


def value_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """JSON values for one field that is there: never a default that means absent."""
    if field.message_type and field.message_type.GetOptions().map_entry:
        value = value_of(field.message_type.fields_by_name["value"])
        return st.dictionaries(text.filter(bool), value, min_size=1, max_size=2)
    if field.is_repeated:
        return st.lists(one_of(field), min_size=1, max_size=2)
    return one_of(field)


def one_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type:
        return message_of(field.message_type)
    if field.enum_type:
        return st.sampled_from([value.name for value in field.enum_type.values if value.number])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=20).map(msgspec.to_builtins)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans() if field.has_presence else st.just(True)
    assert field.type == FieldDescriptor.TYPE_STRING
    return text if field.has_presence or field.is_repeated else text.filter(bool)


def message_of(descriptor: Descriptor) -> st.SearchStrategy[Any]:
    match descriptor.full_name:
        case "google.protobuf.Timestamp":
            return timestamps
        case "google.protobuf.Struct":
            return st.dictionaries(text, values, max_size=3)
        case "google.protobuf.Value":
            return values
    return st.deferred(lambda: filled(descriptor))


@st.composite
def filled(draw: st.DrawFn, descriptor: Descriptor) -> dict[str, Any]:
    """A JSON object of this type: the required members, any of the others, one of each choice."""
    members: dict[str, Any] = {}
    for choice in descriptor.oneofs:
        if not choice.name.startswith("_"):
            field = draw(st.sampled_from(list(choice.fields)))
            members[field.json_name] = draw(value_of(field))
    for field in descriptor.fields:
        if choice_of(field) is None and (is_required(field) or draw(st.booleans())):
            members[field.json_name] = draw(value_of(field))
    return members


@pytest.mark.parametrize("name", ROOTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_whatever_the_official_package_writes_comes_back_equal(name: str, data: st.DataObject) -> None:
    theirs = ParseDict(data.draw(filled(DESCRIPTORS[name])), official_of(ours(name)))
    written = MessageToDict(theirs)
    again = msgspec.json.encode(read(json.dumps(written), ours(name)))
    assert json.loads(again) == written
    assert Parse(again, official_of(ours(name))) == theirs


@given(text=st.text())
def test_any_text_travels(text: str) -> None:
    data = msgspec.json.encode(Part(text=text))
    assert Parse(data, official.Part()).text == text
    assert read(data, Part).text == text


@given(raw=st.binary(max_size=200))
def test_any_bytes_travel_as_base64(raw: bytes) -> None:
    assert Parse(msgspec.json.encode(Part(raw=raw)), official.Part()).raw == raw
    assert read(MessageToJson(official.Part(raw=raw)), Part).raw == raw


@given(value=values)
def test_any_data_travels(value: object) -> None:
    part = Part(data=msgspec.Raw(msgspec.json.encode(value)))
    written = msgspec.json.encode(part)
    assert MessageToDict(Parse(written, official.Part())) == {"data": value}
    assert msgspec.json.decode(read(written, Part).data) == value


def test_a_number_beyond_two_to_the_53rd_keeps_its_digits_here() -> None:
    data = b'{"data":9007199254740993}'
    assert msgspec.json.encode(read(data, Part)) == data
    assert MessageToDict(Parse(data, official.Part())) == {"data": 9007199254740992.0}


# Reading generously


def test_null_as_data_is_a_value() -> None:
    part = read(b'{"data":null}', Part)
    assert part == Part(data=msgspec.Raw(b"null"))
    assert part != Part(text="null")
    assert msgspec.json.encode(part) == b'{"data":null}'


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_null_means_absent_where_a_field_is_optional(name: str) -> None:
    example = next(example for example in A2A.values() if type(example).__name__ == name)
    members = json.loads(msgspec.json.encode(example))
    descriptor = DESCRIPTORS[name]
    without = {
        field.json_name: members[field.json_name]
        for field in descriptor.fields
        if (is_required(field) or choice_of(field)) and field.json_name in members
    }
    nulls = dict.fromkeys(members, None) | dict.fromkeys(ours_optional(name)) | without
    assert read(json.dumps(nulls), ours(name)) == read(json.dumps(without), ours(name))


def ours_optional(name: str) -> list[str]:
    """JSON names of the optional fields, `data` apart, whose null is a value."""
    fields = msgspec.structs.fields(ours(name))
    return [field.encode_name for field in fields if not field.required and field.encode_name != "data"]


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_unknown_members_are_ignored(name: str) -> None:
    example = next(example for example in A2A.values() if type(example).__name__ == name)
    data = b'{"generation":7,"later":{"a":[1]},' + msgspec.json.encode(example)[1:]
    assert read(data.replace(b",}", b"}"), type(example)) == example


def test_an_unspecified_state_is_read() -> None:
    assert read(b'{"state":"TASK_STATE_UNSPECIFIED"}', TaskStatus).state is TaskState.UNSPECIFIED


def test_a_capability_that_is_false_is_said_and_one_unsaid_stays_unsaid() -> None:
    assert msgspec.json.encode(AgentCapabilities(streaming=False)) == b'{"streaming":false}'
    assert read(b"{}", AgentCapabilities).streaming is None


def test_scopes_are_written_even_if_there_are_none() -> None:
    flow = read(b'{"tokenUrl":"https://example.org"}', ClientCredentialsOAuthFlow)
    assert msgspec.json.encode(flow) == b'{"tokenUrl":"https://example.org","scopes":{}}'


# Bad input

MESSAGE = '"messageId":"m","role":"ROLE_USER"'


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        (Part, "{}", "exactly one of text, raw, url and data"),
        (Part, '{"mediaType":"text/plain"}', "exactly one of"),
        (Part, '{"text":null}', "exactly one of"),
        (Part, '{"text":"a","url":"b"}', "exactly one of"),
        (Part, '{"text":"","data":null}', "exactly one of"),
        (Part, '{"text":1}', r"Expected `str \| null`, got `int` - at `\$.text`"),
        (Part, '{"raw":"not base64!"}', r"Invalid base64 encoded string - at `\$.raw`"),
        (Part, '{"raw":"YQ"}', r"Invalid base64 encoded string - at `\$.raw`"),
        (Part, '{"text":"a","metadata":[]}', r"Expected `object \| null`, got `array` - at `\$.metadata`"),
        (Message, f'{{{MESSAGE},"parts":[]}}', "a Message has at least one part"),
        (Message, f"{{{MESSAGE}}}", "missing required field `parts`"),
        (Message, f'{{{MESSAGE},"parts":null}}', r"Expected `array`, got `null` - at `\$.parts`"),
        (Message, f'{{{MESSAGE},"parts":[{{}}]}}', r"exactly one of .* - at `\$.parts\[0\]`"),
        (Message, '{"messageId":"m","role":"user","parts":[{"text":"a"}]}', r"'user' - at `\$.role`"),
        (Artifact, '{"artifactId":"a","parts":[]}', "an Artifact has at least one part"),
        (TaskStatus, '{"state":"working"}', r"Invalid enum value 'working' - at `\$.state`"),
        (TaskStatus, '{"state":2}', r"Expected `str`, got `int` - at `\$.state`"),
        (TaskStatus, "{}", "missing required field `state`"),
        (Task, '{"status":{"state":"TASK_STATE_WORKING"}}', "missing required field `id`"),
        (Task, "[]", "Expected `object`, got `array`"),
        (SecurityScheme, "{}", "holds exactly one of apiKeySecurityScheme"),
        (AgentSkill, '{"id":"a","name":"b","description":"c","tags":[]}', "'tags' may not be empty"),
    ],
)
def test_what_is_no_such_object_is_refused_with_the_reason(
    kind: type[A2AObject], data: str, says: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=says):
        read(data, kind)


@pytest.mark.parametrize(
    "data", ["", "{", '{"text":"a"', '{"data":[1,}', '{"data":NaN}', '{"data":01}', '{"text":"a"} x']
)
def test_what_is_no_json_is_refused(data: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        read(data, Part)


def test_text_that_is_no_utf8_is_refused_at_once_and_data_when_it_is_read() -> None:
    with pytest.raises(UnicodeDecodeError):  # msgspec's own choice: not one of its errors
        read(b'{"text":"\xff"}', Part)
    part = read(b'{"data":"\xff"}', Part)
    with pytest.raises(UnicodeDecodeError):
        msgspec.json.decode(part.data)


@given(data=st.binary() | st.text().map(str.encode) | values.map(msgspec.json.encode))
def test_any_bytes_give_an_object_or_a_value_error(data: bytes) -> None:
    for kind in (Part, Message, Task):
        try:
            assert isinstance(read(data, kind), kind)
        except ValueError:  # which every error of msgspec is, and that about UTF-8
            continue


def test_an_object_cannot_be_made_wrong_in_python_either() -> None:
    mistakes: tuple[Callable[[], object], ...] = (
        Part,
        lambda: Part(text="a", raw=b"a"),
        lambda: Part(data=msgspec.Raw()),
        lambda: Message(message_id="m", role=Role.USER, parts=()),
        lambda: Artifact(artifact_id="a", parts=()),
        SecurityScheme,
        lambda: AgentSkill(id="a", name="b", description="c", tags=()),
    )
    for wrong in mistakes:
        with pytest.raises(ValueError, match=r"exactly one|at least one|may not be empty"):
            wrong()


def test_an_object_never_changes() -> None:
    part = Part(text="a")
    with pytest.raises(AttributeError):
        part.text = "b"  # type: ignore[misc]  # the type checker says so too
