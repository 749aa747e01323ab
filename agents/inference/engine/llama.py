"""The home of llama.cpp: weights, vocabulary, and a context of several sequences, through ctypes.

Only the low-level calls of llama-cpp-python. Not for several threads at once, except for a Vocabulary, which
nothing changes, and an Abort.
"""

import ctypes
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xnai.agents.inference.engine.batches import Batch, Tokens
from xnai.agents.inference.engine.beginnings import Beginnings, may_be_cut
from xnai.agents.inference.engine.bindings import lib
from xnai.agents.inference.errors import InferenceError, ModelInvalid
from xnai.agents.inference.gguf_file import read_gguf
from xnai.agents.inference.memory import micro_batch

_INFO, _WARN, _ERROR = 2, 3, 4  # levels in ggml.h, which the bindings do not name
_BUFFER = re.compile(r"(KV|RS|compute|output|\S+ model) buffer size = +([0-9.]+) MiB")
_PLAIN = (lib.LLAMA_TOKEN_ATTR_UNDEFINED, lib.LLAMA_TOKEN_ATTR_NORMAL, lib.LLAMA_TOKEN_ATTR_BYTE)
_NOT_TEXT = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN

_log = logging.getLogger(__name__)
_complaints: deque[str] = deque(maxlen=8)


class _Said(threading.local):
    """What llama.cpp said to this thread of the buffers that it allocated: kinds and bytes."""

    def __init__(self) -> None:
        self.buffers: list[tuple[str, int]] = []


_said = _Said()


def _on_log(level: int, text: bytes, _: object) -> None:
    line = text.decode(errors="replace").strip()
    if level == _ERROR:
        _complaints.append(line)
    elif level == _INFO and (said := _BUFFER.search(line)):
        _said.buffers.append((said[1], int(float(said[2]) * (1 << 20))))
    if level in (_WARN, _ERROR):
        _log.debug("llama.cpp", extra={"line": line})


_log_callback = lib.llama_log_callback(_on_log)  # a name of its own: C holds it as long as the process lives
lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
lib.llama_backend_init()

_libc = ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)
_strlen = ctypes.cast(_libc.strlen, lib.ggml_abort_callback)


class Abort:
    """Set from any thread: a computation that obeys it ends within a micro-batch.

    llama.cpp asks it by calling C's `strlen` on its byte, so neither Python nor the GIL is in the way.
    """

    def __init__(self) -> None:
        self._byte = ctypes.create_string_buffer(2)

    def set(self) -> None:
        self._byte[0] = b"\x01"

    def clear(self) -> None:
        self._byte[0] = b"\x00"

    @property
    def address(self) -> int:
        """Where the byte lies in memory, as long as this object lives."""
        return ctypes.addressof(self._byte)


class Vocabulary:
    """The tokens of a model. Usable from any thread while its model is open."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.pointer: Any = lib.llama_model_get_vocab(model)
        self.size = int(lib.llama_vocab_n_tokens(self.pointer))
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    def tokenize(self, pieces: Sequence[str], *, begin: bool) -> Tokens:
        """The tokens of a prompt in which control words count, each piece by itself.

        Raises:
            InferenceError: llama.cpp refuses it.
        """
        read = self.beginnings.tokens if self.beginnings else self.read
        parts = [read(piece, begin and not index) for index, piece in enumerate(pieces)]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    @cached_property
    def beginnings(self) -> Beginnings | None:
        """What reads long texts whose beginning is known, for a vocabulary whose texts may be cut."""
        ends = lib.llama_vocab_get_add_eos(self.pointer)
        if lib.llama_vocab_type(self.pointer) != lib.LLAMA_VOCAB_TYPE_SPM or ends:
            return None
        attributes = (lib.llama_vocab_get_attr(self.pointer, token) for token in range(self.size))
        words = ((self._spelling(token), found not in _PLAIN) for token, found in enumerate(attributes))
        if not may_be_cut(words):
            return None
        spaced = self._spelling(int(self.read("a", False)[0])).startswith("\u2581")
        return Beginnings(self.read, spaced=spaced)

    def read(self, text: str, begin: bool) -> Tokens:
        """The tokens of a text, the one that begins a text in front where `begin` wants it."""
        data = text.encode()
        found = np.empty(len(data) + 8, np.int32)
        place = found.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = lib.llama_tokenize(self.pointer, data, len(data), place, len(found), begin, True)
        if count < 0:
            raise InferenceError(f"llama.cpp cannot make tokens of a text of {len(data)} bytes")
        return found[:count].copy()

    def piece(self, token: int) -> bytes:
        """The bytes of a token, maybe half a character. Control tokens have none."""
        if (piece := self._pieces.get(token)) is None:
            piece = self._pieces[token] = self._read_piece(token, 64)
        return piece

    def is_end(self, token: int) -> bool:
        """Whether an answer ends with this token."""
        if (end := self._ends.get(token)) is None:
            end = self._ends[token] = bool(lib.llama_vocab_is_eog(self.pointer, token))
        return end

    def control_words(self) -> tuple[str, ...]:
        """What is spelled like text in a prompt and means something else: `<|im_end|>` and the like."""
        attributes = (lib.llama_vocab_get_attr(self.pointer, token) for token in range(self.size))
        return tuple(self._spelling(token) for token, found in enumerate(attributes) if found & _NOT_TEXT)

    def spelled(self, words: Sequence[str]) -> dict[int, bytes]:
        """The control tokens among these words, each with its spelling."""
        found = ((self.read(word, False), word.encode()) for word in words)
        return {
            int(tokens[0]): data for tokens, data in found if len(tokens) == 1 and not self.piece(tokens[0])
        }

    def chat_template(self) -> str:
        """The Jinja source in the file, "" if there is none."""
        return (lib.llama_model_chat_template(self._model, None) or b"").decode(errors="replace")

    def begin_word(self) -> str:
        """How the beginning-of-text token is spelled, "" if there is none."""
        return self._spelling(lib.llama_vocab_bos(self.pointer))

    def end_word(self) -> str:
        """How the end-of-text token is spelled, "" if there is none."""
        return self._spelling(lib.llama_vocab_eos(self.pointer))

    def _read_piece(self, token: int, room: int) -> bytes:
        buffer = ctypes.create_string_buffer(room)
        length = lib.llama_token_to_piece(self.pointer, token, buffer, room, 0, False)
        return buffer.raw[:length] if length >= 0 else self._read_piece(token, -length)

    def _spelling(self, token: int) -> str:
        if token < 0:
            return ""
        return str(lib.llama_vocab_get_text(self.pointer, token).decode(errors="replace"))


class Weights:
    """An open model; made by `open_weights`.

    Attributes:
        learned: positions that it was trained on.
        dimensions: of a vector.
        size: bytes of the weights.
        mapped: those of them that are pages of the file; others were laid out anew for this processor.
        generates: whether it continues text; those that only embed do not.
    """

    def __init__(self, model: Any, *, causal: bool) -> None:
        self.pointer = model
        self.vocabulary = Vocabulary(model)
        self.learned = int(lib.llama_model_n_ctx_train(model))
        self.dimensions = int(lib.llama_model_n_embd(model))
        self.size = int(lib.llama_model_size(model))
        copied = sum(size for kind, size in _said.buffers if not kind.endswith("_Mapped model"))
        self.mapped = max(0, self.size - copied)
        self.generates = causal and not lib.llama_model_has_encoder(model)


@contextmanager
def open_weights(path: Path) -> Iterator[Weights]:
    """Maps the weights of a GGUF into memory.

    Raises ModelMissing and ModelInvalid.
    """
    causal = read_gguf(path).causal
    with _model(path, vocabulary=False) as model:
        yield Weights(model, causal=causal)


@contextmanager
def _model(path: Path, *, vocabulary: bool) -> Iterator[Any]:
    _complaints.clear()
    _said.buffers.clear()
    settings = lib.llama_model_default_params()
    settings.vocab_only = vocabulary
    model = lib.llama_model_load_from_file(os.fsencode(path), settings)
    if not model:
        raise ModelInvalid(f"llama.cpp cannot load {path}{_complaint()}")
    try:
        yield model
    finally:
        lib.llama_model_free(model)


@contextmanager
def open_vocabulary(path: Path) -> Iterator[Vocabulary]:
    """Reads the tokens of a GGUF, and not its weights.

    Raises ModelMissing and ModelInvalid.
    """
    read_gguf(path)
    with _model(path, vocabulary=True) as model:
        yield Vocabulary(model)


class Context:
    """Sequences of one model that are computed together; made by `open_context`.

    Attributes:
        context: tokens of a sequence.
        sequences: how many there are, numbered from 0.
        memory: bytes of the KV cache and of llama.cpp's own buffers.
    """

    def __init__(self, weights: Weights, pointer: Any, *, sequences: int, limit: int) -> None:
        self.weights, self._pointer, self.sequences = weights, pointer, sequences
        kv = sum(size for kind, size in _said.buffers if kind in ("KV", "RS"))
        self.memory = kv, sum(size for _, size in _said.buffers) - kv
        self._memory = lib.llama_get_memory(pointer)
        # llama.cpp rounds up: beyond the positions a model has learned some kill the process.
        self.context = min(limit, int(lib.llama_n_ctx_seq(pointer)))

    def decode(self, batch: Batch) -> bool:
        """Computes a batch; False if it was aborted, when the micro-batches before that are valid.

        Raises InferenceError.
        """
        batch.c.n_tokens = batch.size
        return self._done(lib.llama_decode(self._pointer, batch.c))

    def encode(self, batch: Batch) -> bool:
        """As `decode`, for a model that embeds."""
        batch.c.n_tokens = batch.size
        return self._done(lib.llama_encode(self._pointer, batch.c))

    def _done(self, status: int) -> bool:
        if status not in (0, 2):
            raise InferenceError(f"llama.cpp could not compute (status {status}){_complaint()}")
        return status == 0

    def logits(self, row: int) -> NDArray[np.float32]:
        """The logits of a row of the last batch: (vocabulary), valid until the next."""
        place = lib.llama_get_logits_ith(self._pointer, row)
        return np.ctypeslib.as_array(place, (self.weights.vocabulary.size,))

    def sample(self, chain: Any, row: int) -> int:
        """The token that a chain of samplers chooses for a row of the last batch; the chain remembers it."""
        return int(lib.llama_sampler_sample(chain, self._pointer, row))

    def vector(self, sequence: int) -> NDArray[np.float32]:
        """The pooled embedding of a sequence of the last batch, not normalised; valid until the next."""
        place = lib.llama_get_embeddings_seq(self._pointer, sequence)
        return np.ctypeslib.as_array(place, (self.weights.dimensions,))

    def use(self, threads: int) -> None:
        """Compute with so many threads from now on."""
        lib.llama_set_n_threads(self._pointer, threads, threads)

    # What the sequences hold

    def copy(self, source: int, target: int) -> None:
        """Gives a sequence the whole content of another. A part of one would kill the process."""
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def cut(self, sequence: int, keep: int) -> None:
        """Forgets what a sequence holds behind its first `keep` tokens."""
        lib.llama_memory_seq_rm(self._memory, sequence, keep, -1)

    def length(self, sequence: int) -> int:
        """The tokens that a sequence holds."""
        return int(lib.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def state_size(self, sequence: int) -> int:
        """Bytes of what a sequence holds."""
        return int(lib.llama_state_seq_get_size(self._pointer, sequence))

    def state(self, sequence: int) -> bytes:
        """What a sequence holds, to be restored in this process or one with the same model and settings."""
        size = self.state_size(sequence)
        buffer = (ctypes.c_uint8 * size)()
        return bytes(
            memoryview(buffer)[: lib.llama_state_seq_get_data(self._pointer, buffer, size, sequence)]
        )

    def restore(self, sequence: int, state: bytes) -> bool:
        """Gives an empty sequence what another held; False if llama.cpp does not accept it."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(lib.llama_state_seq_set_data(self._pointer, buffer, len(state), sequence))


@contextmanager
def open_context(
    weights: Weights,
    *,
    context: int,
    sequences: int,
    threads: int,
    batch: int = 512,
    fast: bool = False,
    abort: Abort | None = None,
) -> Iterator[Context]:
    """Opens `sequences` of `context` tokens each, fewer if the model has learned fewer positions.

    Each sequence has a KV cache of its own: what one holds costs the others no time. Without `fast` there is
    no flash attention, and an answer hardly depends on how it was computed.

    Raises ModelInvalid.
    """
    limit = min(context, weights.learned or context)
    settings = _settings(threads, batch)
    settings.n_ctx, settings.n_seq_max, settings.kv_unified = limit * sequences, sequences, False
    settings.n_ubatch = min(batch, micro_batch(flash=fast))
    settings.flash_attn_type = (
        lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if fast else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    with _opened(weights, settings, abort) as pointer:
        yield Context(weights, pointer, sequences=sequences, limit=limit)


@contextmanager
def open_embedding_context(
    weights: Weights, *, tokens: int, texts: int, threads: int, abort: Abort | None = None
) -> Iterator[Context]:
    """Opens a context for at most `texts` at once, of together at most `tokens`.

    Raises ModelInvalid.
    """
    limit = min(tokens, weights.learned or tokens)
    settings = _settings(threads, tokens)
    settings.n_ctx, settings.n_seq_max, settings.kv_unified, settings.embeddings = tokens, texts, True, True
    settings.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    with _opened(weights, settings, abort) as pointer:
        yield Context(weights, pointer, sequences=texts, limit=limit)


def _settings(threads: int, batch: int) -> Any:
    settings = lib.llama_context_default_params()
    settings.n_batch = settings.n_ubatch = batch
    settings.n_threads = settings.n_threads_batch = threads
    settings.no_perf = True
    return settings


@contextmanager
def _opened(weights: Weights, settings: Any, abort: Abort | None) -> Iterator[Any]:
    _complaints.clear()
    _said.buffers.clear()
    pointer = lib.llama_init_from_model(weights.pointer, settings)
    if not pointer:
        raise ModelInvalid(f"llama.cpp cannot open a context of {settings.n_ctx} tokens{_complaint()}")
    with ExitStack() as stack:
        stack.callback(lib.llama_free, pointer)
        if abort:
            lib.llama_set_abort_callback(pointer, _strlen, ctypes.c_void_p(abort.address))
        yield pointer


def _complaint() -> str:
    """What llama.cpp said last, for the end of a sentence."""
    return f": {'; '.join(_complaints)}" if _complaints else ""
