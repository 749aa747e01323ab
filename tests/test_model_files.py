"""Files that are no model, or one that means harm: refused with a sentence, and the engine lives on."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engines import EngineProcess, engine
from gguf_models import write_model

from xnai.agents.inference.errors import ModelInvalid
from xnai.agents.inference.frames import Refused
from xnai.agents.inference.gguf_file import check_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "random.gguf", seed=1)


@pytest.fixture(scope="module")
def opener(model: Path) -> Iterator[EngineProcess]:
    """Goes on computing with a good model, whatever else it is asked to open."""
    with engine() as found:
        found.open(model, context=128, slots=1, kept=0)
        yield found
        assert found.say("the", 3)


def refusal(opener: EngineProcess, path: Path) -> str:
    refused = opener.open(path, name="other")
    assert isinstance(refused, Refused), refused
    assert (refused.code, refused.model) == ("model_invalid", "other")
    return refused.sentence


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def behind(data: bytes, name: bytes) -> int:
    return data.index(name) + len(name)


HUGE = struct.pack("<Q", 2**62)
HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "too short": lambda data: data[:20],
    "text": lambda data: b"This is no model, but a page that says that there is none.",
    "version": lambda data: changed(data, 4, b"\x09"),
    "big endian": lambda data: changed(data, 4, b"\0\0\0\x03"),
    "tensors without end": lambda data: changed(data, 8, HUGE),
    "no tensors": lambda data: changed(data, 8, bytes(8)),
    "pairs without end": lambda data: changed(data, 16, HUGE),
    "a key without end": lambda data: changed(data, 24, HUGE),
    "an unknown type": lambda data: changed(data, behind(data, b"general.architecture"), b"\x63"),
    "a string without end": lambda data: changed(data, behind(data, b"general.architecture") + 4, HUGE),
    "a list without end": lambda data: changed(data, behind(data, b"tokenizer.ggml.tokens") + 8, HUGE),
    "a list of lists": lambda data: changed(data, behind(data, b"tokenizer.ggml.tokens") + 4, b"\x09"),
    "five dimensions": lambda data: changed(data, behind(data, b"output.weight"), b"\x05"),
    "no size": lambda data: changed(data, behind(data, b"output.weight") + 4, bytes(8)),
    "too large": lambda data: changed(data, behind(data, b"output.weight") + 4, HUGE),
    "a retired type": lambda data: changed(data, behind(data, b"output.weight") + 20, b"\x1f"),
    "no whole block": lambda data: changed(data, behind(data, b"output.weight") + 20, b"\x0c"),
    "not aligned": lambda data: changed(data, behind(data, b"output.weight") + 24, b"\x01"),
    "weights elsewhere": lambda data: changed(data, behind(data, b"output.weight") + 24, HUGE),
    "header cut": lambda data: data[:5000],
    "weights cut": lambda data: data[:-1000],
}


@pytest.mark.parametrize("harm", HOSTILE)
def test_a_file_that_is_no_whole_gguf_is_refused(
    opener: EngineProcess, model: Path, tmp_path: Path, harm: str
) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[harm](model.read_bytes()))
    with pytest.raises(ModelInvalid) as refused:
        check_gguf(path)
    assert str(path) in str(refused.value)
    assert refusal(opener, path) == str(refused.value)


def test_a_gguf_that_llama_cpp_does_not_know_is_refused_with_its_reason(
    opener: EngineProcess, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "strange.gguf"
    path.write_bytes(model.read_bytes().replace(b"blk.1.ffn_up", b"blk.1.ffn_xx"))
    assert "blk.1.ffn_up" in refusal(opener, path)


def test_a_folder_is_no_model(opener: EngineProcess, tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(opener, tmp_path)
