"""One request for text while the engine holds it: its prompt, its tokens, and what may leave of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xnai.agents.inference.engine.batches import Tokens
from xnai.agents.inference.engine.jobs import Job
from xnai.agents.inference.engine.llama import Context, Vocabulary
from xnai.agents.inference.engine.text import TextStream
from xnai.agents.inference.frames import Done, Generate, Refused, Text
from xnai.agents.inference.requests import Finish, TokenLogprob

if TYPE_CHECKING:
    from xnai.agents.inference.engine.drafts import Drafts
    from xnai.agents.inference.engine.rules import Matcher
    from xnai.agents.inference.engine.sampling import Sampler

NOWHERE = -1


class Answering:
    """A request, from its admission to its end.

    Attributes:
        prompt: what has to be in the KV cache before the next token: the prompt, and what was said before.
        sequence: where it is computed, NOWHERE while it waits.
        held: tokens of it that are in the KV cache.
        next: the token chosen last, which is not there yet.
        flushed: when text of it left last, before the first long ago.
        finish: None while it goes on.
        refusal: why it cannot go on to its end.
    """

    def __init__(self, ask: Generate, job: Job, prompt: Tokens, *, room: int, vocabulary: Vocabulary) -> None:
        self.ask, self.job, self.prompt = ask, job, prompt
        self.sequence, self.held, self.next = NOWHERE, 0, -1
        self.finish: Finish | None = None
        self.refusal: Refused | None = None
        self.sampler: Sampler | None = None
        self.matcher: Matcher | None = None
        self.drafts: Drafts | None = None
        self.resources = ExitStack()
        self._vocabulary = vocabulary
        self._tokens_in = len(prompt) - len(ask.said)
        self._limit = min(ask.max_tokens, len(ask.said) + room)
        self._content = np.empty(len(prompt) + room + 1, np.int32)
        self._content[: len(prompt)] = prompt
        self._end = len(prompt)
        self._made = len(ask.said)
        self._text = TextStream(ask.stop)
        self._shown = vocabulary.spelled(ask.shown)
        for token in ask.said:
            self._text.push(self._piece(token))
        self._cached = 0
        self._started = self._first = self._last = 0.0
        self.flushed = -math.inf
        self._pending: list[str] = []
        self._tokens: list[int] = []
        self._spelled = 0  # how many of them are in what is pending
        self._logprobs: list[TokenLogprob] = []
        if ask.said and (self._text.stopped or self._made >= self._limit):
            self.finish = "stop" if self._text.stopped else "length"

    @property
    def content(self) -> Tokens:
        """The prompt and the answer so far, whether or not it is in the KV cache: a view."""
        return self._content[: self._end]

    @property
    def room(self) -> int:
        """How many tokens may follow."""
        return self._limit - self._made

    @property
    def begun(self) -> bool:
        """Whether something of it was computed."""
        return bool(self._started)

    def begin(self, sequence: int, kept: int, now: float) -> None:
        """It is computed from here on in this sequence, which holds so many of its tokens."""
        self.sequence, self.held = sequence, kept
        if not self._started:
            self._started, self._cached = now, min(kept, self._tokens_in)
        self.job.todo = len(self.prompt) - kept

    def give_up_sequence(self) -> None:
        """Its sequence is needed by another: it will be computed again from what it has said."""
        self.prompt = self.content.copy()
        self.sequence, self.held = NOWHERE, 0
        self.job.todo = len(self.prompt)

    def advance(self, computed: int) -> None:
        """So many further tokens of it are in the KV cache."""
        self.held += computed
        self.job.todo = max(0, self.job.todo - computed)

    def choose(self, context: Context, row: int) -> int:
        """The token that follows a row of the last batch, by its sampler and its rule.

        Raises RuleInvalid: the rule has become too costly, or leads nowhere.
        """
        sampler, matcher = self.sampler, self.matcher
        if sampler is None:
            raise AssertionError("a request without a sampler")
        if matcher is None:
            return sampler.choose(row, self._made)
        if forced := matcher.forced:
            sampler.accept(forced[0])
            matcher.advance(forced[0])
            return forced[0]
        if sampler.remembers:  # what was refused must not be remembered
            matcher.mask(context.logits(row))
        token = sampler.choose(row, self._made)
        if not matcher.allows(token):
            matcher.mask(context.logits(row))
            token = sampler.choose(row, self._made, again=True)
        matcher.advance(token)
        return token

    def say(self, token: int, now: float, logprob: TokenLogprob | None = None) -> None:
        """The next token was chosen."""
        if not self._first:
            self._first = now
        self._last = now
        if self._vocabulary.is_end(token):
            return self.conclude("stop")
        self._content[self._end] = token
        self._end += 1
        self._made += 1
        self.job.made = self._made
        self.next = token
        self._tokens.append(token)
        if logprob:
            self._logprobs.append(logprob)
        if self.ask.stop:
            self._spell()
        if self._text.stopped:
            self.conclude("stop")
        elif self._made >= self._limit:
            self.conclude("length")

    def conclude(self, finish: Finish) -> None:
        """It ends here; what was held back may leave."""
        self.finish = finish
        self._spell()
        if not self._text.stopped:
            self._pending.append(self._text.flush())

    def _spell(self) -> None:
        """Makes text of the tokens: where no stop string may be in it, of many together, as it leaves."""
        if tokens := self._tokens[self._spelled :]:
            self._pending.append(self._text.push(b"".join(map(self._piece, tokens))))
            self._spelled = len(self._tokens)

    def _piece(self, token: int) -> bytes:
        return self._shown.get(token) or self._vocabulary.piece(token)

    def due(self, now: float, flush: float) -> bool:
        """Whether there is text that is the first, or the last, or has gathered for so long."""
        ripe = self.finish is not None or now - self.flushed >= flush
        return ripe and bool(self._tokens or self._pending)

    def text(self, now: float, flush: float) -> Text | None:
        """What may leave now, if it is due."""
        if not self.due(now, flush):
            return None
        self._spell()
        frame = Text(self.ask.id, "".join(self._pending), tuple(self._tokens), tuple(self._logprobs))
        self._pending, self._tokens, self._logprobs, self.flushed = [], [], [], now
        self._spelled = 0
        return frame

    def done(self) -> Done:
        """The last frame about it."""
        return Done(
            self.ask.id,
            self.finish or "canceled",
            tokens_in=self._tokens_in,
            tokens_cached=self._cached,
            tokens_out=self._made,
            waited=max(0.0, self._started - self.job.arrived),
            first=max(0.0, self._first - self.job.arrived),
            took=self._last - self._first,
        )


class Row(NamedTuple):
    """What one request has in a batch.

    Attributes:
        tokens: of its prompt, or one of its answer, with those that were guessed to follow.
        row: of the last logits, -1 for none.
        guess: the tokens at its end. sure: they are no guess, because its rule allows nothing else.
    """

    request: Answering
    tokens: int
    row: int
    guess: Sequence[int] = ()
    sure: bool = False
