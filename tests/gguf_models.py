"""Small GGUFs for tests, made at once: a real tokenizer, weights that are random or follow a script."""

from __future__ import annotations

import string
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
CONTROL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_LETTERS = ["\u2581", "\n", *string.ascii_letters, *string.digits, *string.punctuation, *"éüß한글中文"]
_MERGED = ["th", "he", "in", "an", "\u2581t", "\u2581a", "\u2581th", "\u2581the", "ing", "and", "中文"]
WORDS = [*CONTROL, *_BYTES, *_LETTERS, *_MERGED]

_WIDTH, _LAYERS, _HEADS, _KV_HEADS, _FEED_FORWARD = 64, 2, 4, 2, 128


def write_model(
    path: Path,
    *,
    seed: int = 0,
    script: Sequence[str] = (),
    control: Sequence[str] = (),
    spaced: bool = False,
    context: int = 512,
    head: int = _WIDTH // _HEADS,
    feed_forward: int = _FEED_FORWARD,
    chat_template: str | None = CHAT_TEMPLATE,
) -> Path:
    """Writes a model of llama's architecture that generates text, and returns its path.

    Without a script it says anything, the same for the same seed. A script is a list of words of the
    vocabulary of which none comes twice: after each of them the likeliest token is the next one, so that a
    prompt that ends with the first makes it say the others. `</s>` ends an answer. `control` are more control
    words than CONTROL, behind all others. `spaced` puts a space in front of each text. `head` is the
    length of a key and of a value. The wider `feed_forward`, the longer each token takes.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    words = [*WORDS, *control]
    _add_vocabulary(writer, words, (*CONTROL, *control))
    writer.add_add_space_prefix(spaced)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for name, array in _weights(np.random.default_rng(seed), words, script, head, feed_forward).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, words: Sequence[str], control: Sequence[str]) -> None:
    kinds = dict.fromkeys(control, gguf.TokenType.CONTROL) | dict.fromkeys(_BYTES, gguf.TokenType.BYTE)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(index) for index in range(len(words))])
    writer.add_token_types([kinds.get(word, gguf.TokenType.NORMAL) for word in words])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(4)
    writer.add_add_bos_token(True)


def _weights(
    random: np.random.Generator, words: Sequence[str], script: Sequence[str], head: int, feed_forward: int
) -> dict[str, NDArray[np.float32]]:
    def normal(rows: int, columns: int, deviation: float) -> NDArray[np.float32]:
        return (random.standard_normal((rows, columns)) * deviation).astype(np.float32)

    one = np.ones(_WIDTH, np.float32)
    tokens = normal(len(words), _WIDTH, 1.0)
    heads = normal(len(words), _WIDTH, 0.1 if script else 0.4)
    for word, following in pairwise(script):
        heads[words.index(following)] = tokens[words.index(word)]
    weights = {"token_embd.weight": tokens, "output.weight": heads, "output_norm.weight": one}
    # A script holds as long as the layers add little to the word that they stand on.
    out, narrow = (0.01 if script else 0.5) * _WIDTH**-0.5, _WIDTH**-0.5
    for layer in range(_LAYERS):
        block = {
            "attn_norm": one,
            "ffn_norm": one,
            "attn_q": normal(_HEADS * head, _WIDTH, narrow),
            "attn_k": normal(_KV_HEADS * head, _WIDTH, narrow),
            "attn_v": normal(_KV_HEADS * head, _WIDTH, narrow),
            "attn_output": normal(_WIDTH, _HEADS * head, out),
            "ffn_gate": normal(feed_forward, _WIDTH, narrow),
            "ffn_up": normal(feed_forward, _WIDTH, narrow),
            "ffn_down": normal(_WIDTH, feed_forward, out),
        }
        weights |= {f"blk.{layer}.{name}.weight": array for name, array in block.items()}
    return weights
