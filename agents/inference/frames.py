"""What crosses the pipe between the inference agent and its engine: small typed frames, each with its length.

A frame is four bytes of length, little endian, and a MessagePack array whose first item names its kind. Both
ends come from the same installation, so there is no version. Times are seconds from now: the two processes
need not agree on a clock.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal

import msgspec

from xnai.agents.inference.requests import Finish, TokenLogprob

Lane = Literal[0, 1, 2]
"""Urgent, normal, background."""

LENGTH = struct.Struct("<I")
LARGEST = 256 << 20  # bytes of a frame; a longer one is a mistake of ours


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """The root of all frames."""


class Rule(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an answer must look like: a JSON Schema as text, a regular expression, or a grammar (GBNF)."""

    kind: Literal["json_schema", "regex", "grammar"]
    text: str


class Sampling(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How the next token is chosen: the most likely one at temperature 0. `top_k` 0 and `min_p` 0 are off."""

    temperature: float = 0.0
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0
    seed: int = 0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


# To the engine


class Setup(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """The first frame: how the engine behaves, whatever it computes.

    Attributes:
        threads: of a computation; 0 for the physical cores.
        gap: seconds that no stream waits longer for its next token, whatever prompt is computed beside it.
        flush: seconds for which text of one answer may be gathered; its first piece leaves at once.
        queue, queue_tokens: requests that may wait, and tokens of their prompts.
        aging: seconds of waiting that lift a request by a lane.
        lead: tokens of advantage that a cached prefix may give a sender over others.
        overtaking: seconds of waiting after which it gives none over a request any more.
        nice: added to the priority of the process, 0 to 19.
        folder: where what was measured, and states of sequences, are remembered; "" for nowhere.
        saved_memory, saved_disk: bytes for what evicted sequences held, restored where that is cheaper than
            computing it again.
        memory: bytes that all loaded models may take together; 0 for what is available, less a reserve.
        patience: seconds for which requests of a model that is not loaded and has no room wait for those of
            the others, before these yield.
    """

    threads: int = 0
    gap: float = 0.1
    flush: float = 0.1
    queue: int = 256
    queue_tokens: int = 262_144
    aging: float = 20.0
    lead: int = 1024
    overtaking: float = 10.0
    nice: int = 0
    folder: str = ""
    saved_memory: int = 0
    saved_disk: int = 0
    memory: int = 0
    patience: float = 10.0


class Open(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """Have this model open. Answered by Opened or Refused with the id 0 and the model's name.

    One for which there is no room beside the others is loaded when it is asked for, like one that is `later`.

    Attributes:
        name: by which requests ask for it.
        embeds: it makes vectors, and no text.
        context: tokens of a sequence, prompt and answer together.
        slots: sequences that compute at the same time; 0 measures how many pay.
        kept: further sequences that hold prefixes for later requests.
        fast: flash attention and large chunks; without, an answer hardly depends on who else is answered.
        later: it is not loaded before a request asks for it.
    """

    name: str
    path: str
    embeds: bool = False
    context: int = 4096
    slots: int = 0
    kept: int = 4
    fast: bool = False
    later: bool = False


class Generate(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """Compute text.

    Attributes:
        id: by which the engine speaks of it; never used twice in an engine's life.
        pieces: the prompt. Control words count in each piece, and none spans two of them.
        begin: whether the token that begins a text is put in front.
        said: tokens of the answer that have left already: it goes on behind them, and does not repeat them.
        sender, lane, weight: whose it is, for fairness; a sender of weight 2 may use twice as many tokens.
        deadline: seconds from now.
        rule: what the answer must look like.
        alternatives: how many likely tokens to name beside each that was chosen; None for no probabilities.
        cache: whether it may use, and leave behind, a prefix.
        pin: keep its prefix longer than others.
        truncate: which end of a prompt that is too long to leave out: "" refuses it.
        shown: control words that are text where the answer has them; others have none.
    """

    id: int
    model: str
    pieces: tuple[str, ...]
    begin: bool
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    said: tuple[int, ...] = ()
    rule: Rule | None = None
    alternatives: int | None = None
    sender: str = ""
    lane: Lane = 1
    weight: float = 1.0
    deadline: float | None = None
    cache: bool = True
    pin: bool = False
    truncate: Literal["", "start", "middle"] = ""
    shown: tuple[str, ...] = ()


class Embed(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """Compute one vector for each list of tokens."""

    id: int
    model: str
    texts: tuple[tuple[int, ...], ...]
    sender: str = ""
    lane: Lane = 1
    weight: float = 1.0
    deadline: float | None = None


class Count(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """Make tokens of the pieces. Answered by Counted."""

    id: int
    model: str
    pieces: tuple[str, ...]
    begin: bool = True


class Drop(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """End a request where it is. Answered by Done with "canceled", unless it has ended."""

    id: int


class Ask(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """Say how things stand. Answered by Status."""

    id: int


# From the engine


class Opened(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """A model is open; said again each time that it is loaded.

    Attributes:
        slots: sequences that compute at the same time; 0 for not known before it is loaded.
        template: its chat template, "" if it has none.
        control_words: what is spelled like text in a prompt and means something else.
        begin_word, end_word: the tokens that begin and end a text, "" if there are none.
        memory: bytes of weights, of the KV cache, and of llama.cpp's own buffers, as planned until it is
            loaded.
        prefill, decode: tokens a second, measured when it was opened; 0 before.
        loaded: it is in memory; otherwise a request that asks for it waits until it is.
        kept: further sequences that hold prefixes, fewer than asked for where memory is short.
    """

    name: str
    context: int
    dimensions: int
    slots: int
    template: str = ""
    control_words: tuple[str, ...] = ()
    begin_word: str = ""
    end_word: str = ""
    memory: tuple[int, int, int] = (0, 0, 0)
    prefill: float = 0.0
    decode: float = 0.0
    loaded: bool = True
    kept: int = 0


class Loading(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """An open model that is not in memory is read, for a request: Opened or Unloaded follows.

    Nothing else is computed meanwhile. An engine that ends before then ended because of this file.
    """

    name: str
    id: int = 0


class Unloaded(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """A model is not in memory now. It stays open: it is loaded when it is asked for."""

    name: str
    id: int = 0


class Queued(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """A request waits.

    Attributes:
        tokens: of its prompt.
        position: 0 for the next to start.
        start: seconds until then, by the measured speed.
    """

    id: int
    tokens: int
    position: int
    start: float


class Text(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """More of an answer: whole characters, and the tokens that they came from.

    `tokens` may be ahead of `text` by what is held back: half a character, or the beginning of a stop string.
    """

    id: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Done(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """A request has ended; what text was left came in a Text before.

    Attributes:
        tokens_in, tokens_cached, tokens_out: of the prompt, of it found in the cache, of the answer.
        waited: seconds until its first computation.
        first: seconds from its arrival to its first token; 0 without one.
        took: seconds from its first token to its last.
    """

    id: int
    finish: Finish
    tokens_in: int = 0
    tokens_cached: int = 0
    tokens_out: int = 0
    waited: float = 0.0
    first: float = 0.0
    took: float = 0.0


class Refused(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """A request will not be computed, or not to its end.

    Attributes:
        id: 0 for the opening of a model.
        code: of an error of `xnai.agents.inference.errors`.
        retry_after: seconds after which asking again may help; None if it will not.
    """

    id: int
    code: str
    sentence: str
    retry_after: float | None = None
    model: str = ""


class Vectors(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """Vectors of length 1, float32 little endian, one after the other."""

    id: int
    dimensions: int
    data: bytes


class Counted(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """The tokens of a text, int32 little endian."""

    id: int
    data: bytes


class Status(Frame, frozen=True, array_like=True, tag=True, gc=False):
    """How things stand.

    Attributes:
        running, waiting, paused: requests.
        waiting_tokens: of the prompts of those that wait.
        hits, prompts, hit_tokens, prompt_tokens: since the start: prompts that found a prefix, all of them,
            and their tokens.
        steps: batches computed. `busy`: seconds of computing.
        generated: tokens of answers.
        prefill, decode: tokens a second, measured lately; 0 for not yet.
        threads, slots: in use now, which a busy machine lowers.
        memory: bytes that the process holds.
        loaded: the models that are in memory.
    """

    id: int
    running: int = 0
    waiting: int = 0
    paused: int = 0
    waiting_tokens: int = 0
    hits: int = 0
    prompts: int = 0
    hit_tokens: int = 0
    prompt_tokens: int = 0
    steps: int = 0
    busy: float = 0.0
    generated: int = 0
    prefill: float = 0.0
    decode: float = 0.0
    threads: int = 0
    slots: int = 0
    memory: int = 0
    loaded: tuple[str, ...] = ()


ToEngine = Setup | Open | Generate | Embed | Count | Drop | Ask
FromEngine = Opened | Loading | Unloaded | Queued | Text | Done | Refused | Vectors | Counted | Status

_encoder = msgspec.msgpack.Encoder()


def encode_frame(frame: Frame) -> bytes:
    """A frame as it goes into the pipe."""
    body = _encoder.encode(frame)
    return LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts what comes out of the pipe into the bodies of frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are complete now.

        Raises:
            ValueError: a length that no frame has.
        """
        self._held += data
        at = 0
        while len(self._held) - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._held, at)
            if length > LARGEST:
                raise ValueError(f"a frame of {length} bytes")
            end = at + LENGTH.size + length
            if len(self._held) < end:
                break
            yield bytes(self._held[at + LENGTH.size : end])
            at = end
        del self._held[:at]
