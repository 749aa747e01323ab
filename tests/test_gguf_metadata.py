"""What the header of a GGUF says, read without llama.cpp; and the hash of a file, remembered."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_models import CHAT_TEMPLATE, WORDS, write_model
from hypothesis import given, settings
from hypothesis import strategies as st

from xnai.agents.inference.errors import ModelInvalid, ModelMissing
from xnai.agents.inference.file_hash import file_hash
from xnai.agents.inference.gguf_file import read_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model.gguf", context=512)


def written(path: Path, fill: Callable[[gguf.GGUFWriter], None], architecture: str = "llama") -> Path:
    """A GGUF with this metadata and one tensor."""
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_says_what_the_model_is(model: Path) -> None:
    info = read_gguf(model)
    assert (info.architecture, info.quantization, info.tokenizer) == ("llama", "F32", "llama")
    assert (info.context, info.layers, info.heads, info.kv_heads) == (512, 2, 4, (2, 2))
    assert (info.key_length, info.value_length, info.embedding) == (16, 16, 64)
    assert (info.feed_forward, info.vocabulary, info.chat_template) == (128, len(WORDS), CHAT_TEMPLATE)
    assert (info.window, info.experts, info.state_bytes, info.causal) == (0, 0, 0, True)
    assert info.file_bytes == model.stat().st_size
    assert info.tensor_bytes == 4 * info.parameters < info.file_bytes


def test_what_the_file_does_not_say_is_empty(tmp_path: Path) -> None:
    info = read_gguf(written(tmp_path / "bare.gguf", lambda _: None))
    assert (info.name, info.context, info.layers, info.kv_heads, info.chat_template) == ("", 0, 0, (), None)
    assert info.quantization == "F32"  # of its tensors


def test_layers_may_differ_and_heads_may_have_a_size_of_their_own(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(3)
        writer.add_embedding_length(512)
        writer.add_head_count(8)
        writer.add_head_count_kv([2, 0, 4])
        writer.add_key_length(128)
        writer.add_value_length(96)
        writer.add_sliding_window(1024)
        writer.add_expert_count(8)
        writer.add_expert_used_count(2)

    info = read_gguf(written(tmp_path / "model.gguf", fill))
    assert (info.kv_heads, info.key_length, info.value_length) == ((2, 0, 4), 128, 96)
    assert (info.window, info.experts, info.experts_used) == (1024, 8, 2)


def test_the_state_of_a_recurrent_model_is_counted(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(2)
        writer.add_embedding_length(32)
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(64)
        writer.add_ssm_state_size(16)

    info = read_gguf(written(tmp_path / "model.gguf", fill, "mamba"))
    assert info.state_bytes == 2 * 4 * (3 * 64 + 16 * 64)


@pytest.mark.parametrize(
    ("fill", "reason"),
    [
        (lambda writer: writer.add_block_count(100_000), "claims 100000 layers"),
        (lambda writer: writer.add_string("llama.block_count", "two"), "block_count is no whole number"),
        (lambda writer: writer.add_uint32("tokenizer.chat_template", 7), "chat_template is no text"),
        (lambda writer: (writer.add_block_count(3), writer.add_head_count_kv([1])), "one number for each"),
        (lambda writer: writer.add_string("general.name", "x" * 2_000_000), "a text of it has 2000000 bytes"),
        (
            lambda writer: [writer.add_string(f"text.{n}", "x" * 1_000_000) for n in range(17)],
            "its metadata has more than 16 MiB",
        ),
        (lambda writer: writer.add_token_list(["a", "", "b", "", "a\0c"]), "a token twice"),
        (lambda writer: writer.add_token_list(["a", "b" * 100_000]), "a token of it has 100000 bytes"),
    ],
    ids=[
        "layers",
        "text for a number",
        "number for a text",
        "short list",
        "long text",
        "much text",
        "token twice",
        "long token",
    ],
)
def test_a_header_that_claims_what_cannot_be_is_refused(
    tmp_path: Path, fill: Callable[[gguf.GGUFWriter], None], reason: str
) -> None:
    with pytest.raises(ModelInvalid, match=reason):
        read_gguf(written(tmp_path / "model.gguf", fill))


@pytest.mark.parametrize("place", [8, 16], ids=["tensors", "values"])
def test_a_header_that_claims_billions_of_entries_is_refused_at_once(
    model: Path, tmp_path: Path, place: int
) -> None:
    data = bytearray(model.read_bytes())
    data[place : place + 8] = struct.pack("<Q", 1 << 40)
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelInvalid, match=str(1 << 40)):
        read_gguf(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"nowhere\.gguf"):
        read_gguf(tmp_path / "nowhere.gguf")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_give_a_description_or_an_error(model: Path, data: st.DataObject) -> None:
    content = bytearray(model.read_bytes()[:20_000])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    whole = bytes(content) + bytes(model.stat().st_size - len(content))
    path = model.with_name("changed.gguf")
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    said = ""
    try:
        assert read_gguf(path).file_bytes == path.stat().st_size
    except ModelInvalid as error:
        said = str(error)
    assert len(said) < 1000


# Hashes


def settled(path: Path, content: bytes) -> Path:
    """A file that was written a while ago."""
    path.write_bytes(content)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def parts_read(path: Path, cache: Path) -> list[int]:
    parts: list[int] = []
    assert file_hash(path, cache, parts.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(parts) == path.stat().st_size
    return parts


def test_a_file_is_hashed_once_and_again_when_it_changed(tmp_path: Path) -> None:
    path = settled(tmp_path / "model.gguf", bytes(3 << 20))
    assert len(parts_read(path, tmp_path)) == 3
    assert len(parts_read(path, tmp_path)) == 1
    settled(path, b"x" * (3 << 20))  # of the same size, and with the time set back
    assert len(parts_read(path, tmp_path)) == 3


def test_a_file_that_is_still_being_written_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(2 << 20))
    in_the_future = 4_000_000_000
    os.utime(path, (in_the_future, in_the_future))
    assert len(parts_read(path, tmp_path)) == len(parts_read(path, tmp_path)) == 2


def test_a_damaged_memory_of_hashes_and_one_that_cannot_be_written_change_nothing(tmp_path: Path) -> None:
    path = settled(tmp_path / "model.gguf", bytes(2 << 20))
    parts_read(path, tmp_path)
    for memory in (tmp_path / "hashes").iterdir():
        memory.write_bytes(b'{"size": "')
    assert len(parts_read(path, tmp_path)) == 2
    (tmp_path / "file").write_bytes(b"")
    assert len(parts_read(path, tmp_path / "file")) == 2
