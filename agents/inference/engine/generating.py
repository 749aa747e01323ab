"""A model that generates text, and the requests that it computes together, one batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from xnai.agents.inference.engine.admission import admit, positions
from xnai.agents.inference.engine.answering import NOWHERE, Answering, Row
from xnai.agents.inference.engine.batches import Batch, Tokens
from xnai.agents.inference.engine.drafts import WIDEST, Drafts
from xnai.agents.inference.engine.jobs import Jobs, Ledger, Limits, Phase, job_of
from xnai.agents.inference.engine.llama import Context
from xnai.agents.inference.engine.metering import Meter, work_of
from xnai.agents.inference.engine.neighbours import groups
from xnai.agents.inference.engine.outbox import Outbox
from xnai.agents.inference.engine.sampling import logprob_of, sampler_of
from xnai.agents.inference.engine.scheduling import Plan, batch_rows, plan
from xnai.agents.inference.engine.sequences import Sequences
from xnai.agents.inference.engine.speeds import Speeds
from xnai.agents.inference.errors import RuleInvalid
from xnai.agents.inference.frames import Generate, Queued, Refused
from xnai.agents.inference.requests import Finish

if TYPE_CHECKING:
    from xnai.agents.inference.engine.rules import Matcher

_PART = 128  # tokens of a prompt that are computed at once, about
_STREAMS = 8  # whose text is gathered no longer than asked for
_TOGETHER = 0.5  # of that time after which text leaves with that of others: whoever is woken up does more
_LONGEST = 0.25  # seconds until it is looked who else is there, whatever is computed
_TOLD = 1.0  # seconds between two words on who stands where in the queue


class TextModel:
    """The requests for one model.

    Attributes:
        computing: the ids of the requests for which the batch that is computed now may be broken off: those
            whose prompts are in it, and one that is alone. Read by the thread that reads.
        meter: what the batches took.
        generated: tokens of answers.
    """

    def __init__(
        self,
        context: Context,
        streams: Sequences,
        *,
        limits: Limits,
        ledger: Ledger,
        speeds: Speeds,
        usual: Speeds,
        out: Outbox,
        clock: Callable[[], float],
        flush: float,
    ) -> None:
        self.context, self.streams, self.limits, self.speeds = context, streams, limits, speeds
        self.meter = Meter(speeds, usual)
        self.computing: frozenset[int] = frozenset()
        self.requests: dict[int, Answering] = {}
        self.steps = self.generated = 0
        self.busy = 0.0
        self.jobs = Jobs(ledger)
        self._ledger, self._out, self._clock, self._flush = ledger, out, clock, flush
        self._vocabulary = context.weights.vocabulary
        self._batch = Batch(limits.batch)
        self._stale = False
        self._told = 0.0
        self._places: dict[int, int] = {}

    # Requests

    def take(self, ask: Generate, prompt: Tokens, matcher: Matcher | None, *, arrived: float) -> None:
        """A request whose prompt leaves room for an answer: it is admitted, or refused with a frame."""
        job = job_of(ask, arrived, prompt=len(prompt) - len(ask.said))
        job.todo, job.made, job.limit = len(prompt), len(ask.said), ask.max_tokens
        job.cached = self.streams.longest(prompt) if ask.cache else 0
        refusal = admit(job, self.jobs, self.speeds, now=self._clock(), limits=self.limits)
        if refusal and not ask.said:
            self._out.put(refusal.frame(ask.id))
            return
        room = self.context.context - len(prompt)
        request = Answering(ask, job, prompt, room=room, vocabulary=self._vocabulary)
        if ask.said and matcher and matcher.finished:
            request.conclude("stop")
        if request.finish:  # only its end was not told
            self._out.put(request.done())
            return
        request.matcher = matcher
        sampling = sampler_of(self.context, ask.sampling, prompt)
        request.sampler = request.resources.enter_context(sampling)
        self.requests[ask.id] = request
        self.jobs.add(job)

    def drop(self, id: int, finish: Finish = "canceled") -> bool:
        """Ends a request where it is; False if there is none of this id."""
        request = self.requests.get(id)
        if request is None:
            return False
        request.conclude(finish)
        self._end(request, self._clock())
        return True

    def withdraw(self) -> list[Answering]:
        """Gives back the requests of which nothing was computed; nothing is said of them."""
        untouched = [each for each in self.requests.values() if not each.begun]
        for request in untouched:
            del self.requests[request.ask.id]
            self.jobs.remove(request.job)
            request.resources.close()
        return untouched

    # Computing

    def step(self, others: Callable[[], bool]) -> float | None:
        """Computes one batch, and further ones of the same requests as long as nothing has to be decided.

        `others` says whether somebody else wants something.

        Returns 0 if there may be another, else in how many seconds; None if nobody waits.
        """
        began = self._clock()
        self._look_for_prefixes()
        chosen = plan(self.jobs, self.speeds, began, self.limits)
        self._obey(chosen, began)
        if chosen.start:  # what was cached of their prompts could not all be used, perhaps
            chosen.rows = batch_rows(self.jobs.running, self.speeds, began, self.limits)
        self._bring_together()
        rows = list(self._fill(chosen.rows))
        self._tell(began)
        if not rows:
            return None if chosen.wake is None else max(0.0, chosen.wake - began)
        # The more streams, the longer each gathers: otherwise the cores are spent on messages.
        flush = self._flush * max(1.0, len(rows) / _STREAMS)
        if reading := self._reading(rows):
            self._say_before(began, flush - reading)
        now = self._compute(rows, began, self._until(rows, began, flush), others)
        if any(row.request.due(now, flush) for row in rows):
            flush *= _TOGETHER
        for row in rows:
            self._send(row.request, now, flush)
        return 0.0

    def _until(self, rows: Sequence[Row], now: float, flush: float) -> float:
        """How long the same requests may go on: until there is text to send, or a deadline, or at once."""
        if any(row.guess or row.request.job.todo for row in rows):
            return now  # the next rows are others
        due = min(row.request.flushed for row in rows) + flush
        return min(due, self.jobs.soonest, now + _LONGEST)

    def _compute(self, rows: Sequence[Row], began: float, until: float, others: Callable[[], bool]) -> float:
        """Computes the batch, and while nothing comes between the tokens that follow; when it was done."""
        work, held = work_of(rows), [row.request.held for row in rows]
        alone = len(rows) == 1
        self.computing = frozenset(row.request.ask.id for row in rows if alone or row.request.job.todo)
        now, steps = began, 0
        while done := self.context.decode(self._batch):
            now = self._clock()
            steps += 1
            for row in rows:
                self._advance(row, now)
            if now >= until or others() or not self._go_on(rows):
                break
        self.computing = frozenset()
        if steps:
            self.meter.learn(work, now - began, steps)
            for row, before in zip(rows, held, strict=True):
                request = row.request
                self.streams.hold(request.sequence, request.content[before : request.held])
                self._ledger.charge(request.job, row.tokens + steps - 1)
        if not done:
            now = self._clock()
            for row in rows:
                self._find_out(row.request)
        self.steps += steps + (not done)
        self.busy += now - began
        return now

    def _go_on(self, rows: Sequence[Row]) -> bool:
        """Makes a batch of the tokens that were chosen last, if that is all that these requests need."""
        requests = [row.request for row in rows]
        if any(request.finish or request.refusal for request in requests):
            return False
        if len(rows) == 1 and self._guess(requests[0])[0]:
            return False
        self._batch.go_on([request.next for request in requests])
        return True

    def _look_for_prefixes(self) -> None:
        """What is cached of those that wait, where that has changed."""
        if self._stale:
            self.streams.prefill_costs(self.speeds.prefill(_PART) / _PART)
            for request in self.requests.values():
                if request.job.phase is Phase.QUEUED and request.ask.cache:
                    request.job.cached = self.streams.longest(request.prompt)
            self._stale = False

    def _obey(self, chosen: Plan, now: float) -> None:
        for id in chosen.drop:
            self.drop(id, "deadline")
        for id in chosen.end:
            self.drop(id, "deadline")
        for id in chosen.pause:  # what it has said leaves now: it may wait for long
            if frame := self.requests[id].text(now, 0.0):
                self._out.put(frame)
        chosen.enact(self.jobs, now)
        for id in chosen.start:
            self._start(self.requests[id], now)

    def _start(self, request: Answering, now: float) -> None:
        if request.sequence == NOWHERE:
            sequence, kept = self._open(request)
            request.begin(sequence, kept, now)
            self._stale = True

    def _open(self, request: Answering) -> tuple[int, int]:
        """A sequence; if all are taken, that of a request which is paused: no more run than there are."""
        while (opening := self.streams.open(request.prompt, cache=request.ask.cache)) is None:
            paused = [each for each in self.requests.values() if each.job.phase is Phase.PAUSED]
            victim = max(
                (each for each in paused if each.sequence != NOWHERE),
                key=lambda each: (each.job.lane, each.job.arrived),
            )
            self.streams.drop(victim.sequence)
            victim.give_up_sequence()
        return opening

    def _bring_together(self) -> None:
        """Makes neighbours of those that run, if that costs less than what it costs that they are none."""
        running = self.jobs.running
        computing = {self.requests[job.id].sequence for job in running}
        if (goes := groups(computing)) < 2:
            return
        each = self.speeds.decode(len(running), goes) - self.speeds.decode(len(running))
        until_one_ends = min(self.speeds.left(job.made, job.limit) for job in running)
        worth = self.meter.wasted + each * until_one_ends
        if moved := self.streams.bring_together(computing, worth):
            self.meter.wasted = 0.0
            for request in self.requests.values():
                request.sequence = moved.get(request.sequence, request.sequence)

    def _fill(self, rows: Sequence[tuple[int, int]]) -> Iterator[Row]:
        """The batch."""
        batch = self._batch
        batch.clear()
        for request, planned in self._in_order(rows):
            held = request.held
            if planned:
                wanted = int(planned == request.job.todo)
                tokens = request.content[held : held + planned]
                row = batch.add(tokens, held, request.sequence, wanted=wanted)
                yield Row(request, planned, row if wanted else -1)
            else:
                guess, sure = self._guess(request) if len(rows) == 1 else ((), False)
                wanted = 1 if sure and request.ask.alternatives is None else 1 + len(guess)
                row = batch.add((request.next, *guess), held, request.sequence, wanted=wanted)
                yield Row(request, 1 + len(guess), row, guess, sure)

    def _in_order(self, rows: Sequence[tuple[int, int]]) -> list[tuple[Answering, int]]:
        """Neighbours beside each other: llama.cpp computes those together."""
        found = [
            (self.requests[id], planned)
            for id, planned in rows
            if id in self.requests and self.requests[id].job.phase is Phase.RUNNING
        ]
        if len(found) > 1:
            found.sort(key=lambda row: row[0].sequence)
        return found

    def _guess(self, request: Answering) -> tuple[Sequence[int], bool]:
        """What follows its next token, and whether that is sure.

        Only where one request runs: rows of unequal length are computed one after the other.
        """
        if request.matcher and (forced := request.matcher.forced):
            return forced[: min(WIDEST, request.room - 1)], True
        if request.drafts is None:
            request.drafts = Drafts(self.meter.costs)
        return request.drafts.guess(request.content, request.room - 1), False

    def _advance(self, row: Row, now: float) -> None:
        request, before = row.request, row.request.held
        request.job.served = now
        computed = row.tokens - len(row.guess)
        if row.row >= 0:
            try:
                right = self._say(row, now)
            except RuleInvalid as error:  # the rule has become too costly, or leads nowhere
                request.refusal = Refused(request.ask.id, error.code, str(error))
                right = 0
            if row.guess:
                if request.drafts and not row.sure:
                    request.drafts.learn(len(row.guess), right)
                self.streams.cut(request.sequence, before + computed + right)
                computed += right
        request.advance(computed)

    def _say(self, row: Row, now: float) -> int:
        """Chooses the next token, and as long as the guess was right the one after it; how often it was."""
        request, first = row.request, row.row - len(row.guess)
        for right in range(len(row.guess) + 1):
            logprob, wanted = None, request.ask.alternatives
            logits = (
                None if wanted is None else self.context.logits(first + right).copy()
            )  # a rule masks them
            token = request.choose(self.context, first + right)
            if logits is not None and wanted is not None and not self._vocabulary.is_end(token):
                logprob = logprob_of(token, logits, wanted, self._vocabulary)
            request.say(token, now, logprob)
            self.generated += 1
            if request.matcher and request.matcher.finished:
                request.conclude("stop")
            if request.finish or right == len(row.guess) or token != row.guess[right]:
                return right
        raise AssertionError("unreachable")

    def _find_out(self, request: Answering) -> None:
        """After an abort: what the sequence holds now."""
        length = self.streams.length(request.sequence)
        if request.job.todo and length > request.held:
            # The last token of a prompt is computed again: its logits are lost.
            computed = min(length - request.held, request.job.todo - 1)
            request.advance(computed)
            self.streams.hold(request.sequence, request.content[request.held - computed : request.held])
        self.streams.cut(request.sequence, request.held)

    def _reading(self, rows: Sequence[Row]) -> float:
        """Seconds for the pieces of prompts in a batch, as far as is known."""
        return sum(self.speeds.prefill(row.tokens, row.request.held) for row in rows if row.request.job.todo)

    # Speaking

    def _say_before(self, now: float, flush: float) -> None:
        """Lets text leave that would otherwise wait too long for the step that follows."""
        for request in self.requests.values():
            if frame := request.text(now, flush):
                self._out.put(frame)
        self._out.send()

    def _send(self, request: Answering, now: float, flush: float) -> None:
        if frame := request.text(now, flush):
            self._out.put(frame)
        if request.finish or request.refusal:
            self._end(request, now)

    def _end(self, request: Answering, now: float) -> None:
        if self.requests.pop(request.ask.id, None) is None:
            return
        if frame := request.text(now, self._flush):
            self._out.put(frame)
        self._out.put(request.refusal or request.done())
        self.jobs.remove(request.job)
        if request.finish in ("stop", "length"):  # others say nothing of how long answers are
            self.speeds.ended(request.job.made)
        request.resources.close()
        if request.sequence != NOWHERE:
            if request.ask.cache and request.held:
                self.streams.keep(request.sequence, pin=request.ask.pin)
            else:
                self.streams.drop(request.sequence)
            self._stale = True

    def _tell(self, now: float) -> None:
        """Who stands where in the queue, where that has changed."""
        if now - self._told < _TOLD or len(self.jobs.running) == len(self.requests):
            return
        self._told = now
        places = positions(self.jobs, self.speeds, now, self.limits)
        for each in places:
            if self._places.get(each.id) != each.position:
                self._out.put(Queued(each.id, self.requests[each.id].job.prompt, each.position, each.start))
        self._places = {each.id: each.position for each in places}

    def close(self) -> None:
        """Frees what the requests hold in C."""
        for request in self.requests.values():
            request.resources.close()
        self.streams.close()
