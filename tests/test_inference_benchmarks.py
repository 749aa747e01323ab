"""What the benchmarks of the inference agent are made of: models, vocabularies, programs, figures."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import gguf
import pytest
from gguf_models import write_model

from benchmarks.harness import rounds
from benchmarks.inference import shapes
from benchmarks.inference.shapes import SHAPES, Shape, write
from benchmarks.inference.targets import Target, Trace, locked, minimal
from benchmarks.inference.tokenizers import Vocabulary, byte_pairs, sentence_pieces
from benchmarks.inference.workloads import aggregate, late_first, median_first, total
from xnai.agents.inference.gguf_file import check_gguf

Opening = Callable[..., AbstractAsyncContextManager[Target]]
TINY = Shape(width=64, layers=2, heads=2, kv_heads=1, feed_forward=96)


def _field(number: int, data: bytes) -> bytes:
    """A field of a protocol buffer that holds bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


def _piece(text: str, *, kind: int | None = None) -> bytes:
    score = bytes([2 << 3 | 5]) + b"\0\0\x80\xbf"
    return _field(1, _field(1, text.encode()) + score + (bytes([3 << 3, kind]) if kind else b""))


def test_the_pieces_of_a_sentencepiece_model_become_a_vocabulary() -> None:
    pieces = [_piece("<unk>", kind=2), _piece("<s>", kind=3), _piece("</s>", kind=3), _piece("\u2581hello")]
    trainer = _field(2, b"\x18\x80\x7d")  # something that nobody reads
    found = sentence_pieces(b"".join(pieces) + trainer)
    assert found.tokens == ["<unk>", "<s>", "</s>", "\u2581hello"]
    assert found.types == [2, 3, 3, 1]
    assert found.scores == [-1.0] * 4
    assert (found.begin, found.end, found.adds_begin) == (1, 2, True)
    assert found.words() == ["hello"]


def test_the_ranks_of_byte_pairs_become_merges_in_their_order() -> None:
    tokens = [bytes([byte]) for byte in range(256)] + [b"he", b" t", b"the", b" the"]
    ranks = b"\n".join(b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    found = byte_pairs(ranks, 270)
    assert len(found.tokens) == len(found.types) == 270
    assert found.merges == ["h e", "\u0120 t", "t he", "\u0120t he"]
    assert [found.tokens[found.begin], found.tokens[found.end]] == ["<|endoftext|>", "<|im_end|>"]
    assert found.words() == ["the"]


def test_a_made_model_is_one_that_the_engine_takes_and_is_always_the_same(tmp_path: Path) -> None:
    words = Vocabulary(
        kind="llama",
        tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581a"],
        types=[2, 3, 3, *[6] * 256, 1],
        scores=[0.0] * 260,
        begin=1,
        end=2,
        adds_begin=True,
    )
    for name in ("one", "two"):
        write(tmp_path / name, "tiny", TINY, words)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    check_gguf(tmp_path / "one")
    read = gguf.GGUFReader(tmp_path / "one")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in read.tensors}
    assert kinds["blk.1.ffn_down.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"
    assert len(kinds) == 2 + 1 + 9 * TINY.layers


def test_a_shape_can_be_written_as_blocks() -> None:
    for shape in SHAPES.values():
        assert shape.width % shapes.BLOCK == shape.feed_forward % shapes.BLOCK == 0
        assert shape.width % shape.heads == shape.heads % shape.kv_heads == 0


@pytest.mark.parametrize("opened", [minimal, locked])
async def test_a_program_answers_with_the_time_of_each_piece(opened: Opening, tmp_path: Path) -> None:
    model = write_model(tmp_path / "random.gguf", seed=3)
    with anyio.fail_after(60):
        async with opened(model, context=256, threads=1) as target:
            traces: list[Trace] = []

            async def ask(prompt: str) -> None:
                traces.append(await target.ask(prompt, 6))

            await ask("one")
            if opened is locked:  # the other one has a single caller
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask, "two")
                    tasks.start_soon(ask, "three")
    for trace in traces:
        assert 1 <= trace.tokens <= 6
        assert list(trace.times) == sorted(trace.times)
        assert trace.first >= 0


def test_figures_are_made_of_traces() -> None:
    traces = [
        Trace(began=10.0, times=(11.0, 12.0, 13.0), tokens=3),
        Trace(began=10.5, times=(14.5, 15.0), tokens=2),
    ]
    assert traces[0].rate == 1.0
    assert total(traces) == 5.0
    assert aggregate(traces) == 1.0
    assert median_first(traces) == 2.5
    assert late_first(traces) == 4.0


async def test_in_each_round_each_side_is_measured_once() -> None:
    async def ours(number: int) -> tuple[str, int]:
        return "ours", number

    async def floor(number: int) -> tuple[str, int]:
        return "floor", number

    found = await rounds({"ours": ours, "floor": floor}, 3)
    assert found == [{"ours": ("ours", number), "floor": ("floor", number)} for number in range(3)]
