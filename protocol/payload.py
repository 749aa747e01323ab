"""Between Python values and the parts of a message.

| Python | Part |
|---|---|
| `str` | `text` |
| `bytes` | `raw`, `application/octet-stream` |
| anything else that msgspec or Pydantic can write | `data`, `application/json` (no NaN, no infinity) |
| an A2A `Message` or `Part` | as it is |
"""

from __future__ import annotations

import math
import types
from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import Any, Generic, TypeVar, Union, cast, get_args, get_origin

import msgspec
from msgspec.inspect import CustomType, type_info

from xnai.protocol.a2a import NO_DATA, Message, Part, Role
from xnai.protocol.errors import InvalidPayload
from xnai.protocol.names import new_id

T = TypeVar("T")
JSON = "application/json"
BYTES = "application/octet-stream"
_NOT_AS_TEXT = (bytes, bytearray, memoryview)
"""A text part is no bytes; within `data`, where JSON has only strings, they are base64."""
_SHOWN = 5  # problems of a value that are named
_EXACT = (int, float, bool, str, bytes, type(None))


class Whole(msgspec.Struct, Generic[T], frozen=True):
    """The last thing that a streaming skill yields, where its answer is more than its chunks joined.

    A skill declares it, `AsyncIterator[str | Whole[Answer]]`, and then has to end with one. `call` gets
    `value`; `stream` gets it behind the chunks, if what it asks for names both: `str | Answer`.
    """

    value: T


def is_union(type: object) -> bool:
    """Whether values of several types may come: `str | Answer`."""
    return isinstance(type, types.UnionType) or get_origin(type) is Union


def _write_foreign(value: Any) -> Any:
    if dump := getattr(value, "model_dump", None):  # Pydantic, without importing it
        return dump(mode="json")
    raise TypeError(f"values of type {type(value).__name__} cannot be sent")


def _read_foreign(type: type, value: Any) -> Any:
    if validate := getattr(type, "model_validate", None):
        return validate(value)
    raise TypeError(f"values of type {type.__name__} cannot be received")


def _describe_foreign(type: Any) -> dict[str, Any]:
    """Of a Pydantic model: its own definitions stand inside it, where their references find them."""
    if describe := getattr(type, "model_json_schema", None):
        described: dict[str, Any] = describe()
        return described
    raise NotImplementedError(f"values of type {type.__name__} have no schema")


_encode = msgspec.json.Encoder(enc_hook=_write_foreign).encode


def part_of(value: object) -> Part:
    """`value` as one part.

    Raises:
        InvalidPayload: it cannot be written as JSON, or as UTF-8.
    """
    if type(value) is str:
        return Part(text=value) if value.isascii() else _checked(Part(text=value))
    if isinstance(value, Part):
        return _checked(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Part(raw=bytes(value), media_type=BYTES)
    return Part(data=msgspec.Raw(_json(value)), media_type=JSON)


def parts_of(value: object) -> tuple[Part, ...]:
    """`value` as parts: those of a Message, otherwise one."""
    return tuple(map(_checked, value.parts)) if isinstance(value, Message) else (part_of(value),)


def _checked(part: Part) -> Part:
    """A part that an author made: what nobody could write or read would end more than its task."""
    try:
        if part.data is not NO_DATA:
            msgspec.json.decode(part.data)
        msgspec.json.encode(part)
    except UnicodeEncodeError as error:
        raise InvalidPayload(f"This text cannot be sent: {error}.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise InvalidPayload(f"The data of this part is no JSON: {error}.") from error
    return part


def _json(value: object) -> bytes:
    try:
        written = _encode(value)
        if isinstance(value, msgspec.Raw):
            msgspec.json.decode(written)
        elif b"null" in written and _has_no_json(msgspec.to_builtins(value, enc_hook=_write_foreign)):
            raise ValueError("JSON has no NaN and no infinity")
        return written
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidPayload(f"This value cannot be sent: {error}.") from error


def _has_no_json(value: object) -> bool:
    """Whether a float is in it that would be written as null."""
    if isinstance(value, float):
        return not math.isfinite(value)
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = value
    return any(map(_has_no_json, inner))


def _check_type(type: Any) -> None:
    """Raises TypeError for a type of which no value could ever be read."""
    if not {Part, Message}.isdisjoint(get_args(type)):
        raise TypeError("a Part or a Message stands for itself, not in a union")
    todo, seen = [cast(object, type_info(type))], set[int]()
    while todo:
        info = todo.pop()
        if id(info) in seen:
            continue
        seen.add(id(info))
        if isinstance(info, CustomType) and not hasattr(info.cls, "model_validate"):
            raise TypeError(f"values of type {_name(info.cls)} have no place in a message")
        if isinstance(info, (tuple, list)):
            todo.extend(info)
        elif isinstance(info, msgspec.Struct):
            todo.extend(getattr(info, field) for field in info.__struct_fields__)


class Codec(Generic[T]):
    """Reads parts as values of one type, and writes values of that type as a part."""

    def __init__(self, type: Any) -> None:
        self.type = type
        try:
            _check_type(type)
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(type, dec_hook=_read_foreign)
        except (TypeError, NotImplementedError) as error:
            raise InvalidPayload(f"{type!r} is no type of a payload: {error}.") from error

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of its values (draft 2020-12). Texts and bytes are parts of their own kinds."""
        if self.type in (Message, Part):
            return {"title": self.type.__name__, "description": f"an A2A {self.type.__name__}"}
        schema = msgspec.json.schema(self.type, schema_hook=_describe_foreign)
        # Through JSON, as defaults are given as they are: a tuple would differ from the list that is read.
        return msgspec.json.decode(msgspec.json.encode(schema), type=dict[str, Any])

    def read(self, parts: tuple[Part, ...], message: Message | None = None) -> T:
        """The value in the first of `parts`; a type of Message gets all of them, or the `message` itself.

        Raises:
            InvalidPayload: it is not of this type.
        """
        if self.type is Message:
            whole = message or Message(message_id=new_id(), role=Role.AGENT, parts=parts)
            return cast(T, whole)
        if not parts:
            raise InvalidPayload("This message has no parts.")
        part = parts[0]
        if self.type is Part:
            return cast(T, part)
        try:
            return cast(T, self._read(part))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise InvalidPayload(f"This is no {_name(self.type)}: {_sentence(error)}.") from error

    def _read(self, part: Part) -> Any:
        if part.data is not NO_DATA:
            return self._decoder.decode(part.data)
        value = part.text if part.text is not None else part.raw if part.raw is not None else part.url
        if type(value) is self.type:
            return value
        if isinstance(value, bytes) and self.type is str:
            raise ValueError("it holds bytes")
        return msgspec.convert(value, self.type, builtin_types=_NOT_AS_TEXT, dec_hook=_read_foreign)

    def write(self, value: T) -> tuple[Part, ...]:
        """`value` as parts, if it is of this type.

        Raises:
            InvalidPayload: it is not, or cannot be written.
        """
        parts = parts_of(value)
        kind = type(value)
        if not (kind is self.type and kind in _EXACT) and kind is not Message:
            self.read(parts)
        return parts


@lru_cache(maxsize=512)
def _codec_of_hashable(type: Any) -> Codec[Any]:
    return Codec(type)


def codec_of(type: type[T]) -> Codec[T]:
    """The codec of a type, made once.

    Raises:
        InvalidPayload: values of this type cannot be sent.
    """
    if type is object:
        return cast(Codec[T], _codec_of_hashable(Any))
    try:
        return _codec_of_hashable(cast(Hashable, type))
    except TypeError:  # an annotation with an unhashable argument
        return Codec(type)


def _sentence(error: Exception) -> str:
    """What an error says; a Pydantic one says it in several lines."""
    if details := getattr(error.__cause__ or error, "errors", None):  # msgspec wraps what a hook raises
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in details()[:_SHOWN])
    return str(error)


def _name(type: Any) -> str:
    return getattr(type, "__name__", None) or str(type)
