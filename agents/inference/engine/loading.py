"""Opens models, with as many sequences as fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xnai.agents.inference.cores import physical_cores
from xnai.agents.inference.engine.batches import Tokens
from xnai.agents.inference.engine.bindings import version
from xnai.agents.inference.engine.calibrating import LENGTH, MOST, Measured, Way, figures_of
from xnai.agents.inference.engine.embedding import TEXTS, TOKENS, VectorModel
from xnai.agents.inference.engine.generating import TextModel
from xnai.agents.inference.engine.governor import eased
from xnai.agents.inference.engine.jobs import Ledger, Limits
from xnai.agents.inference.engine.llama import (
    Abort,
    Vocabulary,
    Weights,
    open_context,
    open_embedding_context,
    open_vocabulary,
)
from xnai.agents.inference.engine.outbox import Outbox
from xnai.agents.inference.engine.sequences import Sequences
from xnai.agents.inference.engine.speeds import Speeds
from xnai.agents.inference.errors import ModelInvalid, ModelTooLarge, PromptTooLong
from xnai.agents.inference.frames import Generate, Open, Opened, Setup
from xnai.agents.inference.gguf_file import GgufInfo
from xnai.agents.inference.memory import MemoryPlan, fits, most_sequences, plan_memory
from xnai.protocol.errors import InvalidPayload

if TYPE_CHECKING:
    from xnai.agents.inference.engine.rules import Matcher, Rulebook
    from xnai.agents.inference.engine.saved import SavedStates

_BATCH = 512  # tokens of a decode


class Prepared(NamedTuple):
    """The tokens of a prompt and of what was said already, and what holds the answer to its rule."""

    prompt: Tokens
    matcher: Matcher | None
    model: Loaded


class Loaded:
    """A model that is in memory.

    Attributes:
        name: by which requests ask for it.
        wanted: how it was asked for.
        info: what its file says.
        model: computes its requests, in a context that is replaced when it shrinks or grows.
        measured: what was measured when it was loaded; None for one that embeds.
        full: sequences that compute and further ones that are kept, with all the memory it could use.
        size: those that there are.
        since, sized, used: when it was loaded, had its size changed, and last had something to do.
        quiet: its pace on the quiet machine, which is near 1 if it was quiet when measured.
    """

    def __init__(
        self, wanted: Open, info: GgufInfo, weights: Weights, *, measured: Measured | None, now: float
    ) -> None:
        self.name, self.wanted, self.info, self.weights = wanted.name, wanted, info, weights
        self.vocabulary: Vocabulary = weights.vocabulary
        self.model: TextModel | VectorModel
        self.measured = measured
        self.full = self.size = (TEXTS, 0)
        self.since = self.sized = self.used = now
        self.quiet = 1.0 if measured and measured.calm else 2.0
        self.resources, self.context = ExitStack(), ExitStack()
        self._rules: Rulebook | None = None

    @property
    def takes(self) -> int:
        """Bytes that are free without it."""
        return self.weights.size + sum(self.model.context.memory)

    def close(self) -> None:
        """Frees it."""
        self.model.close()
        self.context.close()
        self.resources.close()

    def read(self, ask: Generate) -> Prepared:
        """What a request brings. Its tokens leave room for an answer.

        Raises:
            PromptTooLong: they do not.
            InvalidPayload: its prompt is empty.
            RuleInvalid: its rule cannot be kept.
        """
        prompt = self._prompt(ask)
        matcher = self._rulebook().start(ask.rule, ask.said) if ask.rule else None
        return Prepared(prompt, matcher, self)

    def _rulebook(self) -> Rulebook:
        if self._rules is None:
            from xnai.agents.inference.engine.rules import Rulebook  # its library takes 5 MB, and few need it

            self._rules = Rulebook(self.vocabulary.pointer)
        return self._rules

    def _prompt(self, ask: Generate) -> Tokens:
        prompt = self.vocabulary.tokenize(ask.pieces, begin=ask.begin)
        if not len(prompt):
            raise InvalidPayload("the prompt is empty")
        whole = self.model.context.context
        if len(prompt) >= whole:
            if not ask.truncate:
                raise PromptTooLong(
                    f"the prompt has {len(prompt)} tokens, the context of {ask.model} {whole}"
                )
            prompt = shortened(prompt, max(1, whole - min(ask.max_tokens, whole // 2)), ask.truncate)
        return np.concatenate([prompt, np.array(ask.said, np.int32)]) if ask.said else prompt


def shortened(prompt: Tokens, most: int, end: str) -> Tokens:
    """At most so many tokens of a prompt. The first stays: what follows it, or the middle, is left out."""
    if end == "start":
        return np.concatenate([prompt[:1], prompt[len(prompt) - most + 1 :]]) if most > 1 else prompt[-1:]
    first = (most + 1) // 2
    return np.concatenate([prompt[:first], prompt[len(prompt) - (most - first) :]])


class Bounds(NamedTuple):
    """What a model that is loaded has to keep to.

    Attributes:
        room: bytes for all of it.
        level: how much is given back because memory is short.
        alone: nobody else computes, so that speeds can be measured.
    """

    room: int
    level: int
    alone: bool


class Opener:
    """Brings models into memory, within bounds that are given to it.

    Attributes:
        threads, most_threads: of a computation, now and on a quiet machine.
        saving: what is evicted may be saved in memory.
    """

    def __init__(self, setup: Setup, abort: Abort, *, out: Outbox, clock: Callable[[], float]) -> None:
        self.threads = self.most_threads = setup.threads or physical_cores()
        self._setup, self._abort, self._out, self._clock = setup, abort, out, clock
        self._folder = Path(setup.folder) if setup.folder else None
        self.saving = True
        self._ledger = Ledger()
        self._measured: dict[Open, Measured] = {}

    def load(self, wanted: Open, info: GgufInfo, weights: Weights, bounds: Bounds) -> Loaded:
        """A model whose weights are in memory, with its contexts. The caller closes the weights behind it.

        Raises ModelInvalid and ModelTooLarge.
        """
        if weights.generates == wanted.embeds:
            raise ModelInvalid(
                f"{wanted.path} is a model that generates text, not one for embeddings"
                if wanted.embeds
                else f"{wanted.path} is a model for embeddings: it does not generate text"
            )
        if wanted.embeds:
            found = Loaded(wanted, info, weights, measured=None, now=self._clock())
            self._open_vectors(found)
            return found
        measured = self._measure(wanted, info, weights, bounds)
        found = Loaded(wanted, info, weights, measured=measured, now=self._clock())
        found.full = wanted.slots or measured.slots, wanted.kept
        size = fitted(wanted, info, eased(bounds.level, *found.full), room=bounds.room)
        self._open_text(found, measured, size, Speeds(measured.speeds))
        return found

    def _measure(self, wanted: Open, info: GgufInfo, weights: Weights, bounds: Bounds) -> Measured:
        """What the model costs: as measured before, or now if nothing else computes."""
        if known := self._measured.get(wanted):
            return known
        most = most_sequences(info, LENGTH, MOST, bounds.room, flash=wanted.fast) if bounds.alone else 0
        way = Way(self.most_threads, wanted.fast)
        found = figures_of(Path(wanted.path), weights, way, folder=self._folder, most=most)
        if most:
            self._measured[wanted] = found
        return found

    def resize(self, found: Loaded, size: tuple[int, int]) -> None:
        """Gives a model that generates text and has no requests other numbers of sequences. What was kept is
        lost.

        Raises ModelInvalid, after which it can only be closed.
        """
        assert found.measured
        assert isinstance(found.model, TextModel)
        found.model.close()
        found.context.close()
        self._open_text(found, found.measured, size, found.model.speeds)

    def _open_text(self, found: Loaded, measured: Measured, size: tuple[int, int], speeds: Speeds) -> None:
        setup, wanted = self._setup, found.wanted
        opening = open_context(
            found.weights,
            context=wanted.context,
            sequences=sum(size),
            threads=self.threads,
            batch=_BATCH,
            fast=wanted.fast,
            abort=self._abort,
        )
        context = found.context.enter_context(opening)
        limits = Limits(
            slots=size[0],
            batch=_BATCH,
            gap=setup.gap,
            aging=setup.aging,
            aside=max(0, size[1] - 1),  # what it holds needs a sequence; one of them is spare
            lead=setup.lead,
            overtaking=setup.overtaking,
            queue=setup.queue,
            queue_tokens=setup.queue_tokens,
        )
        found.size, found.sized = size, self._clock()
        found.model = TextModel(
            context,
            Sequences(
                context,
                self._saved(found),
                token_bytes=plan_memory(found.info, 1, 1).kv_per_token,
                spare=min(size) > 1,
            ),
            limits=limits,
            ledger=self._ledger,
            speeds=speeds,
            usual=Speeds(measured.speeds),
            out=self._out,
            clock=self._clock,
            flush=setup.flush,
        )

    def _saved(self, loaded: Loaded) -> SavedStates | None:
        """Where what is evicted may live on. A state fits into the same file, context and library only."""
        setup, wanted = self._setup, loaded.wanted
        if not setup.saved_memory and not (setup.saved_disk and self._folder):
            return None
        from xnai.agents.inference.engine.saved import SavedStates  # OpenSSL: four megabytes that few need

        found = Path(wanted.path).stat()
        words = (
            found.st_size,
            found.st_mtime_ns,
            loaded.weights.size,
            wanted.context,
            wanted.fast,
            version(),
        )
        folder = self._folder / "states" if self._folder and setup.saved_disk else None
        memory = setup.saved_memory if self.saving else 0
        return SavedStates(repr(words), memory=memory, folder=folder, disk=setup.saved_disk)

    def _open_vectors(self, found: Loaded) -> None:
        opening = open_embedding_context(
            found.weights, tokens=TOKENS, texts=TEXTS, threads=self.threads, abort=self._abort
        )
        context = found.context.enter_context(opening)
        found.model = VectorModel(context, ledger=self._ledger, out=self._out, clock=self._clock)


def planned(wanted: Open, info: GgufInfo, sequences: int = 1) -> MemoryPlan:
    """What a model takes with so many sequences."""
    if wanted.embeds:
        return plan_memory(info, min(TOKENS, info.context or TOKENS), flash=True)
    context = min(wanted.context, info.context or wanted.context)
    return plan_memory(info, context, sequences, flash=wanted.fast)


def fitted(wanted: Open, info: GgufInfo, size: tuple[int, int], *, room: int) -> tuple[int, int]:
    """As many sequences as fit into so many bytes, of those that compute and those that are kept.

    Fewer are kept before fewer compute. Raises ModelTooLarge if there is no room for one.
    """
    slots, kept = size
    context = min(wanted.context, info.context or wanted.context)
    count = most_sequences(info, context, slots + kept, room, flash=wanted.fast)
    if not count:
        raise too_large(wanted, info, room)
    return min(slots, count), max(0, count - slots)


def too_large(wanted: Open, info: GgufInfo, room: int) -> ModelTooLarge:
    """Why a model does not fit into so many bytes."""
    return ModelTooLarge(f"{wanted.name} {fits(planned(wanted, info), max(0, room))}")


def opened(found: Loaded) -> Opened:
    """What to say of a model that is in memory."""
    model, vocabulary, (slots, kept) = found.model, found.vocabulary, found.size
    text = isinstance(model, TextModel)
    return Opened(
        found.name,
        context=model.context.context,
        dimensions=found.weights.dimensions,
        slots=slots,
        template=vocabulary.chat_template(),
        control_words=vocabulary.control_words() if text else (),
        begin_word=vocabulary.begin_word(),
        end_word=vocabulary.end_word(),
        memory=(found.weights.size, *model.context.memory),
        prefill=model.speeds.prefill_rate if isinstance(model, TextModel) else 0.0,
        decode=model.speeds.decode_rate if isinstance(model, TextModel) else 0.0,
        kept=kept,
    )


def opened_later(wanted: Open, info: GgufInfo) -> Opened:
    """What to say of a model that is not in memory. Raises ModelMissing and ModelInvalid."""
    context = min(wanted.context, info.context or wanted.context)
    plan = planned(wanted, info, max(1, wanted.slots) + wanted.kept)
    with open_vocabulary(Path(wanted.path)) as vocabulary:
        return Opened(
            wanted.name,
            context=TOKENS if wanted.embeds else context,
            dimensions=info.embedding,
            slots=0,
            template=vocabulary.chat_template(),
            control_words=() if wanted.embeds else vocabulary.control_words(),
            begin_word=vocabulary.begin_word(),
            end_word=vocabulary.end_word(),
            memory=(plan.weights, plan.kv, plan.compute),
            loaded=False,
        )
