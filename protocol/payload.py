"""Between Python values and the parts of a message.

| Python | Part |
|---|---|
| `str` | `text` |
| `bytes` | `raw`, `application/octet-stream` |
| anything else that msgspec or Pydantic can write | `data`, `application/json` |
| an A2A `Message` or `Part` | as it is |
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

import msgspec

from xnai.protocol.a2a import NO_DATA, Message, Part, Role
from xnai.protocol.errors import InvalidPayload
from xnai.protocol.names import new_id

T = TypeVar("T")
JSON = "application/json"
BYTES = "application/octet-stream"
_NOT_AS_TEXT = (bytes, bytearray, memoryview)
"""A text part is no bytes; within `data`, where JSON has only strings, they are base64."""
_EXACT = (int, float, bool, str, bytes, type(None))


def _write_foreign(value: Any) -> Any:
    if dump := getattr(value, "model_dump", None):  # Pydantic, without importing it
        return dump(mode="json")
    raise TypeError(f"values of type {type(value).__name__} cannot be sent")


def _read_foreign(type: type, value: Any) -> Any:
    if validate := getattr(type, "model_validate", None):
        return validate(value)
    raise TypeError(f"values of type {type.__name__} cannot be received")


_encode = msgspec.json.Encoder(enc_hook=_write_foreign).encode


def part_of(value: object) -> Part:
    """`value` as one part.

    Raises:
        InvalidPayload: it cannot be written as JSON.
    """
    if type(value) is str:
        return Part(text=value)
    if isinstance(value, Part):
        return _checked(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Part(raw=bytes(value), media_type=BYTES)
    return Part(data=msgspec.Raw(_json(value)), media_type=JSON)


def parts_of(value: object) -> tuple[Part, ...]:
    """`value` as parts: those of a Message, otherwise one."""
    return tuple(map(_checked, value.parts)) if isinstance(value, Message) else (part_of(value),)


def _checked(part: Part) -> Part:
    """A part that an author made: its data must be JSON, or nobody could read the message."""
    if part.data is not NO_DATA:
        try:
            msgspec.json.decode(part.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidPayload(f"The data of this part is no JSON: {error}.") from error
    return part


def _json(value: object) -> bytes:
    try:
        return _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidPayload(f"This value cannot be sent: {error}.") from error


class Codec(Generic[T]):
    """Reads parts as values of one type, and writes values of that type as a part."""

    def __init__(self, type: Any) -> None:
        self.type = type
        try:
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(type, dec_hook=_read_foreign)
        except (TypeError, NotImplementedError) as error:
            raise InvalidPayload(f"{type!r} is no type of a payload: {error}.") from error

    def read(self, parts: tuple[Part, ...], message: Message | None = None) -> T:
        """The value in the first of `parts`; a type of Message gets all of them, or the `message` itself.

        Raises:
            InvalidPayload: it is not of this type.
        """
        if self.type is Message:
            whole = message or Message(message_id=new_id(), role=Role.AGENT, parts=parts)
            return cast(T, whole)
        part = parts[0]
        if self.type is Part:
            return cast(T, part)
        try:
            return cast(T, self._read(part))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise InvalidPayload(f"This is no {_name(self.type)}: {error}.") from error

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


def _name(type: Any) -> str:
    return getattr(type, "__name__", None) or str(type)
