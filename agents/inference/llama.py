"""The home of llama.cpp: one model and one context of it, through the low-level calls of llama-cpp-python.

Not for several threads at once, except for CancelFlag.
"""

import ctypes
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import llama_cpp as lib
import msgspec
import numpy as np
from numpy.typing import NDArray

from xnai.agents.inference.cores import physical_cores
from xnai.agents.inference.errors import InferenceError, ModelInvalid
from xnai.agents.inference.gguf_file import check_gguf

_BATCH = 512  # tokens in one decode
_TOP_K = 40  # before every other sampler: top_p over a whole vocabulary costs more than the token itself
_ABORTED = 2  # what a decode returns; and the levels in ggml.h, which the bindings do not name
_WARN, _ERROR = 3, 4
_NOT_TEXT = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN

_log = logging.getLogger(__name__)
_complaints: deque[str] = deque(maxlen=8)


def _on_log(level: int, text: bytes, _: object) -> None:
    line = text.decode(errors="replace").strip()
    if level == _ERROR:
        _complaints.append(line)
    if level in (_WARN, _ERROR):
        _log.debug("llama.cpp", extra={"line": line})


_log_callback = lib.llama_log_callback(_on_log)  # a name of its own: C holds it as long as the process lives
lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
lib.llama_backend_init()


class CancelFlag:
    """Set from any thread: the computation that was given this flag ends within milliseconds.

    llama.cpp asks it by calling C's `strlen` on its byte, so neither Python nor the GIL is in the way.
    """

    def __init__(self) -> None:
        self._byte = ctypes.create_string_buffer(2)

    def set(self) -> None:
        self._byte[0] = b"\x01"

    def is_set(self) -> bool:
        return self._byte[0] != b"\x00"

    @property
    def address(self) -> int:
        """Where the byte lies in memory, as long as this object lives."""
        return ctypes.addressof(self._byte)


_libc = ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)
_strlen = ctypes.cast(_libc.strlen, lib.ggml_abort_callback)


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen: the most likely one at temperature 0."""

    temperature: float
    top_p: float
    seed: int


class Llama:
    """An open model with its context; made by `open_llama`.

    Attributes:
        context: tokens that fit, prompt and answer together.
        dimensions: length of an embedding.
        memory: whether the model has a memory of earlier tokens; those that only embed have none.
    """

    def __init__(self, model: Any, context: Any, *, limit: int) -> None:
        self._model, self._context = model, context
        self._vocabulary: Any = lib.llama_model_get_vocab(model)
        self._memory = lib.llama_get_memory(context)
        self._pieces: dict[int, bytes] = {}
        # llama.cpp rounds up: beyond the positions a model has learned some kill the process.
        self.context = min(limit, lib.llama_n_ctx_seq(context))
        self.dimensions = lib.llama_model_n_embd(model)
        self.memory = bool(self._memory) and not lib.llama_model_has_encoder(model)

    # Text and tokens

    def tokenize(self, text: str, *, begin: bool) -> list[int]:
        """The tokens of a text in which control words count, with those that begin a text if `begin`."""
        data = text.encode()
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        count = lib.llama_tokenize(self._vocabulary, data, len(data), tokens, room, begin, True)
        if count < 0:
            raise InferenceError(f"llama.cpp cannot make tokens of a text of {len(data)} bytes")
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        """The bytes of a token, maybe half a character. Control tokens have none."""
        if token not in self._pieces:
            self._pieces[token] = self._read_piece(token, 64)
        return self._pieces[token]

    def is_end(self, token: int) -> bool:
        """Whether an answer ends with this token."""
        return bool(lib.llama_vocab_is_eog(self._vocabulary, token))

    def control_words(self) -> list[str]:
        """What is spelled like text in a prompt and means something else: `<|im_end|>` and the like."""
        count = lib.llama_vocab_n_tokens(self._vocabulary)
        attributes = (lib.llama_vocab_get_attr(self._vocabulary, token) for token in range(count))
        return [self._spelling(token) for token, found in enumerate(attributes) if found & _NOT_TEXT]

    def chat_template(self) -> str:
        """The Jinja source in the file, "" if there is none."""
        return (lib.llama_model_chat_template(self._model, None) or b"").decode(errors="replace")

    def begin_word(self) -> str:
        """How the beginning-of-text token is spelled, "" if there is none."""
        return self._spelling(lib.llama_vocab_bos(self._vocabulary))

    def end_word(self) -> str:
        """How the end-of-text token is spelled, "" if there is none."""
        return self._spelling(lib.llama_vocab_eos(self._vocabulary))

    def _read_piece(self, token: int, room: int) -> bytes:
        buffer = ctypes.create_string_buffer(room)
        length = lib.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, False)
        return buffer.raw[:length] if length >= 0 else self._read_piece(token, -length)

    def _spelling(self, token: int) -> str:
        if token < 0:
            return ""
        return str(lib.llama_vocab_get_text(self._vocabulary, token).decode(errors="replace"))

    # Computing

    def forget(self) -> None:
        """The next decode begins a new text."""
        lib.llama_memory_clear(self._memory, False)

    def decode(self, tokens: Sequence[int], cancel: CancelFlag) -> bool:
        """Goes on with the text by these tokens; False if it was cancelled. The caller sees that they fit."""
        self._obey(cancel)
        for start in range(0, len(tokens), _BATCH):
            part = tokens[start : start + _BATCH]
            data = (ctypes.c_int32 * len(part))(*part)  # a name of its own: the batch is but a pointer to it
            batch = lib.llama_batch_get_one(data, len(part))
            if cancel.is_set() or not self._done(lib.llama_decode(self._context, batch)):
                return False
        return True

    @contextmanager
    def sampler(self, sampling: Sampling) -> Iterator["Sampler"]:
        """Chooses the tokens of one answer."""
        chain: Any = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        try:
            if sampling.temperature == 0:
                lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
            else:
                lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(_TOP_K))
                lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
                lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(sampling.temperature))
                lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(sampling.seed))
            yield Sampler(chain, self._context)
        finally:
            lib.llama_sampler_free(chain)

    def embed(self, texts: Sequence[Sequence[int]], cancel: CancelFlag) -> NDArray[np.float32] | None:
        """One pooled vector per text, not normalised, (texts, dimensions); None if it was cancelled.

        At most as many texts, and together as many tokens, as the context was opened for.
        """
        self._obey(cancel)
        total = sum(map(len, texts))
        batch = lib.llama_batch_init(total, 0, 1)
        try:
            at = 0
            for number, text in enumerate(texts):
                for position, token in enumerate(text):
                    batch.token[at], batch.pos[at], batch.logits[at] = token, position, 1
                    batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
                    at += 1
            batch.n_tokens = total
            if cancel.is_set() or not self._done(lib.llama_encode(self._context, batch)):
                return None
        finally:
            lib.llama_batch_free(batch)
        rows = [lib.llama_get_embeddings_seq(self._context, number) for number in range(len(texts))]
        return np.stack([np.ctypeslib.as_array(row, (self.dimensions,)) for row in rows])  # copies

    def _obey(self, cancel: CancelFlag) -> None:
        self._cancel = cancel  # its memory must live as long as llama.cpp may look at it
        _complaints.clear()
        lib.llama_set_abort_callback(self._context, _strlen, ctypes.c_void_p(cancel.address))

    def _done(self, status: int) -> bool:
        if status not in (0, _ABORTED):
            raise InferenceError(f"llama.cpp could not compute (status {status}){_complaint()}")
        return status == 0


class Sampler:
    """Chooses tokens of one text, one after the other."""

    def __init__(self, chain: Any, context: Any) -> None:
        self._chain, self._context = chain, context

    def choose(self) -> int:
        """The token that follows what was decoded last."""
        return int(lib.llama_sampler_sample(self._chain, self._context, -1))


@contextmanager
def open_llama(path: Path, *, context: int, threads: int | None, texts: int = 1) -> Iterator[Llama]:
    """Opens a GGUF: for text of `context` tokens or, with `texts` > 1, to embed that many texts in a call.

    `threads` defaults to the physical cores there are. Raises ModelMissing and ModelInvalid.
    """
    check_gguf(path)
    _complaints.clear()
    with ExitStack() as stack:
        model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        if not model:
            raise ModelInvalid(f"llama.cpp cannot load {path}{_complaint()}")
        stack.callback(lib.llama_model_free, model)
        settings = lib.llama_context_default_params()
        settings.n_ctx = min(context, lib.llama_model_n_ctx_train(model) or context)
        settings.n_batch = settings.n_ubatch = _BATCH
        settings.n_threads = settings.n_threads_batch = threads or physical_cores()
        settings.no_perf = True
        # Without flash attention an answer does not depend on how its prompt was cut into batches.
        settings.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if texts > 1:
            settings.n_seq_max, settings.kv_unified, settings.embeddings = texts, True, True
            settings.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        opened = lib.llama_init_from_model(model, settings)
        if not opened:
            raise ModelInvalid(f"llama.cpp cannot open {path} for {settings.n_ctx} tokens{_complaint()}")
        stack.callback(lib.llama_free, opened)
        yield Llama(model, opened, limit=settings.n_ctx)


def _complaint() -> str:
    """What llama.cpp said last, for the end of a sentence."""
    return f": {'; '.join(_complaints)}" if _complaints else ""
