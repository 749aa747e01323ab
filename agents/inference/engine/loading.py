"""Which models are open in the engine, and with how many sequences."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xnai.agents.inference.cores import physical_cores
from xnai.agents.inference.engine.calibrating import figures_of
from xnai.agents.inference.engine.embedding import TEXTS, TOKENS, VectorModel
from xnai.agents.inference.engine.generating import TextModel
from xnai.agents.inference.engine.jobs import Ledger, Limits
from xnai.agents.inference.engine.llama import (
    LIBRARY,
    Abort,
    Tokens,
    Vocabulary,
    Weights,
    open_context,
    open_embedding_context,
    open_weights,
)
from xnai.agents.inference.engine.rules import Matcher, Rulebook
from xnai.agents.inference.engine.saved import SavedStates
from xnai.agents.inference.engine.sequences import Sequences
from xnai.agents.inference.engine.speeds import Speeds
from xnai.agents.inference.errors import ModelInvalid, ModelMissing, PromptTooLong
from xnai.agents.inference.frames import Frame, Generate, Open, Opened, Setup
from xnai.protocol.errors import InvalidPayload

_BATCH = 512  # tokens of a decode


class Prepared(NamedTuple):
    """The tokens of a prompt and of what was said already, and what holds the answer to its rule."""

    prompt: Tokens
    matcher: Matcher | None


class Loaded:
    """A model that is open.

    Attributes:
        name: by which requests ask for it.
        model: computes its requests.
    """

    def __init__(self, name: str, weights: Weights, model: TextModel | VectorModel) -> None:
        self.name, self.model = name, model
        self.vocabulary: Vocabulary = weights.vocabulary
        self._rules = Rulebook(weights.vocabulary.pointer)

    def read(self, ask: Generate) -> Prepared:
        """What a request brings. Its tokens leave room for an answer.

        Raises:
            PromptTooLong: they do not.
            InvalidPayload: its prompt is empty, or no valid Unicode.
            RuleInvalid: its rule cannot be kept.
        """
        prompt = self._prompt(ask)
        return Prepared(prompt, self._rules.start(ask.rule, ask.said) if ask.rule else None)

    def _prompt(self, ask: Generate) -> Tokens:
        try:
            prompt = self.vocabulary.tokenize(ask.pieces, begin=ask.begin)
        except UnicodeEncodeError as error:
            raise InvalidPayload("the prompt is no valid Unicode") from error
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


class Loader:
    """Opens models.

    Attributes:
        threads: of a computation.
    """

    def __init__(
        self, setup: Setup, abort: Abort, *, emit: Callable[[Frame], None], clock: Callable[[], float]
    ) -> None:
        self.threads = setup.threads or physical_cores()
        self._setup, self._abort, self._emit, self._clock = setup, abort, emit, clock
        self._folder = Path(setup.folder) if setup.folder else None
        self._ledger = Ledger()
        self._loaded: dict[str, Loaded] = {}
        self._stacks: dict[str, ExitStack] = {}
        self.reading = threading.Lock()
        """Held by whoever uses a vocabulary outside the loop: no model is closed meanwhile."""

    def loaded(self) -> list[Loaded]:
        """The models that are open."""
        return list(self._loaded.values())

    def get(self, name: str) -> Loaded:
        """An open model. Raises ModelMissing."""
        if (found := self._loaded.get(name)) is None:
            raise ModelMissing(f"the engine holds no model {name}")
        return found

    def open(self, wanted: Open) -> None:
        """Opens a model, if it is not open, and says so. Raises ModelMissing and ModelInvalid."""
        if wanted.name not in self._loaded:
            with ExitStack() as stack:
                weights = stack.enter_context(open_weights(Path(wanted.path)))
                opening = self._open_vectors if wanted.embeds else self._open_text
                model = opening(wanted, weights, stack)
                stack.callback(model.close)
                self._loaded[wanted.name] = Loaded(wanted.name, weights, model)
                self._stacks[wanted.name] = stack.pop_all()
        self._emit(self._opened(wanted, self._loaded[wanted.name]))

    def close(self, name: str) -> None:
        """Frees a model that has no requests."""
        with self.reading:
            del self._loaded[name]
            self._stacks.pop(name).close()

    def _open_vectors(self, wanted: Open, weights: Weights, stack: ExitStack) -> VectorModel:
        if weights.generates:
            raise ModelInvalid(f"{wanted.path} is a model that generates text, not one for embeddings")
        opening = open_embedding_context(
            weights, tokens=TOKENS, texts=TEXTS, threads=self.threads, abort=self._abort
        )
        context = stack.enter_context(opening)
        return VectorModel(context, ledger=self._ledger, emit=self._emit, clock=self._clock)

    def _open_text(self, wanted: Open, weights: Weights, stack: ExitStack) -> TextModel:
        if not weights.generates:
            raise ModelInvalid(f"{wanted.path} is a model for embeddings: it does not generate text")
        figures = figures_of(
            Path(wanted.path), weights, threads=self.threads, fast=wanted.fast, folder=self._folder
        )
        slots = wanted.slots or figures.slots
        opening = open_context(
            weights,
            context=wanted.context,
            sequences=slots + wanted.kept,
            threads=self.threads,
            batch=_BATCH,
            fast=wanted.fast,
            abort=self._abort,
        )
        context = stack.enter_context(opening)
        setup = self._setup
        limits = Limits(
            slots=slots,
            batch=_BATCH,
            gap=setup.gap,
            aging=setup.aging,
            lead=setup.lead,
            queue=setup.queue,
            queue_tokens=setup.queue_tokens,
        )
        return TextModel(
            context,
            Sequences(context, self._saved(wanted, weights)),
            limits=limits,
            ledger=self._ledger,
            speeds=Speeds(figures.speeds),
            emit=self._emit,
            clock=self._clock,
            flush=setup.flush,
        )

    def _saved(self, wanted: Open, weights: Weights) -> SavedStates | None:
        """Where what is evicted may live on. A state fits into the same file, context and library only."""
        setup = self._setup
        if not setup.saved_memory and not (setup.saved_disk and self._folder):
            return None
        found = Path(wanted.path).stat()
        words = (found.st_size, found.st_mtime_ns, weights.size, wanted.context, wanted.fast, LIBRARY)
        folder = self._folder / "states" if self._folder and setup.saved_disk else None
        return SavedStates(repr(words), memory=setup.saved_memory, folder=folder, disk=setup.saved_disk)

    def _opened(self, wanted: Open, found: Loaded) -> Opened:
        model, vocabulary = found.model, found.vocabulary
        weights = model.context.weights
        text = isinstance(model, TextModel)
        return Opened(
            wanted.name,
            context=model.context.context,
            dimensions=weights.dimensions,
            slots=model.limits.slots if isinstance(model, TextModel) else TEXTS,
            template=vocabulary.chat_template(),
            control_words=vocabulary.control_words() if text else (),
            begin_word=vocabulary.begin_word(),
            end_word=vocabulary.end_word(),
            memory=(weights.size, 0, 0),
            prefill=model.speeds.prefill_rate if isinstance(model, TextModel) else 0.0,
            decode=model.speeds.decode_rate if isinstance(model, TextModel) else 0.0,
        )
