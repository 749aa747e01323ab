"""Which sequence of the KV cache holds which tokens, and which of them a new prompt runs in.

Bookkeeping alone: whoever calls does to the KV cache what is decided here, at once and in this order: read
the saved state that an `Opening` wants, as the next step may push it out; save what an `Evicted` says, and
cut its sequence; copy or restore; cut the sequence behind `keep` tokens.

A sequence is free, runs (also while its request is paused), or is kept for later requests. The tokens of
saved states are known too.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import msgspec

from xnai.agents.inference.engine.neighbours import Copies, copies_together
from xnai.agents.inference.engine.radix import Holder, Tokens, Tree

_NEARLY = (
    0.9  # a kept sequence that shares this much with a prompt is the earlier turn of the same conversation
)
_CHANCE = 0.25  # that what is evicted is asked for again
_LEAST = 64  # tokens worth a save
_APART = 0.1  # seconds that an answer takes longer if it is computed by itself, about


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What things cost, in seconds: `copy` of a sequence into another, the others of a token."""

    prefill: float = 1.3e-3
    copy: float = 0.02
    save: float = 17e-6
    restore: float = 3e-6


class Evicted(msgspec.Struct, frozen=True):
    """A sequence to be cut behind `keep` tokens. `tokens` is what it holds if that is worth a save before."""

    seq: int
    tokens: Tokens | None = None
    keep: int = 0


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """Where a prompt runs.

    Attributes:
        keep: tokens of it that are in the sequence then, fewer than it has: the last one is computed again.
        copy_from: the sequence to copy, the whole of it.
        restore: the key of the saved state to restore.
        evicted: what has to be saved and cut first.
    """

    seq: int
    keep: int = 0
    copy_from: int | None = None
    restore: str | None = None
    evicted: tuple[Evicted, ...] = ()


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand: sequences kept and their tokens, what several hold counted once; and since the start,
    prompts opened, those of which a beginning was there, and their tokens."""

    kept: int
    kept_tokens: int
    pinned: int
    prompts: int
    hits: int
    prompt_tokens: int
    hit_tokens: int


class _Sequence(Holder):
    """What a sequence or a saved state holds. A private one is in no tree, and has a count instead."""

    __slots__ = ("count", "kept", "key", "pinned", "private", "seq", "used")

    def __init__(self, *, seq: int = -1, key: str = "", private: bool = False) -> None:
        self.seq, self.key, self.private = seq, key, private
        self.kept = self.pinned = False
        self.count = self.used = 0


class Streams:
    """The sequences 0 to `count` - 1 of one context.

    Attributes:
        costs: as measured lately, for the choice between copying, restoring and computing.
    """

    def __init__(
        self, count: int, *, pins: int | None = None, costs: Costs | None = None, spare: bool = False
    ) -> None:
        """`pins` bounds how many kept sequences may be pinned, by default a quarter of all.

        With `spare`, what is kept leaves one sequence free, so that others can be moved.
        """
        self.costs = costs or Costs()
        self._spare = spare
        self._count, self._pins, self._most = count, count // 4 if pins is None else pins, count
        self._tree = Tree()
        self._free = set(range(count))
        self._sequences: dict[int, _Sequence] = {}
        self._saved: dict[str, _Sequence] = {}
        # llama.cpp copies between sequences at the next computation, not at once: until then neither what the
        # source holds may be replaced by a restored state, nor what the copy holds be saved.
        self._copying: set[int] = set()
        self._clock = self._prompts = self._hits = self._prompt_tokens = self._hit_tokens = 0

    # Opening

    def longest(self, prompt: Tokens) -> int:
        """How many tokens of a prompt are known, saved ones included; its last one does not count."""
        return self._tree.match(prompt[:-1])[1]

    @property
    def available(self) -> int:
        """How many more could be opened."""
        return self._count - sum(not sequence.kept for sequence in self._sequences.values())

    def open(self, prompt: Tokens, *, cache: bool = True) -> Opening | None:
        """Where a prompt of at least one token runs, or None if all sequences do.

        It goes on in the kept sequence of its earlier turn, or in a copy of another's, or restores a saved
        state, whichever costs least. Without `cache` it uses nobody's tokens, and nobody uses its own.
        """
        if not self.available:
            return None
        source, keep = self._source(prompt) if cache else (None, 0)
        opening = self._take(source, keep) if source and self._goes_on(source, keep) else None
        if opening is None:
            opening = self._place(prompt, source, keep, cache=cache)
            keep = opening.keep
        if not cache:
            self._sequences[opening.seq] = _Sequence(seq=opening.seq, private=True)
        elif opening.seq not in self._sequences:
            sequence = self._sequences[opening.seq] = _Sequence(seq=opening.seq)
            self._tree.add(sequence, prompt[:keep])
        self._touch(self._sequences[opening.seq])
        self._prompts += 1
        self._prompt_tokens += len(prompt)
        self._hits += keep > 1  # the first token is everybody's
        self._hit_tokens += keep
        return opening

    def _source(self, prompt: Tokens) -> tuple[_Sequence | None, int]:
        """Whose beginning to use, and how much of it."""
        best: tuple[float, int, int] = (0.0, 0, 0)  # seconds saved, and shorter and older ones before others
        source, keep = None, 0
        for holder, length in self._tree.holders(prompt[:-1]):
            assert isinstance(holder, _Sequence)
            gain = (length * self.costs.prefill - self._expense(holder, length), -holder.length, -holder.used)
            if gain > best and gain[0] > 0:
                best, source, keep = gain, holder, length
        return source, keep

    def _expense(self, holder: _Sequence, length: int) -> float:
        """Seconds to have this much of it in a sequence."""
        if holder.key:
            return holder.length * self.costs.restore
        return 0.0 if self._goes_on(holder, length) else self.costs.copy

    def _goes_on(self, holder: _Sequence, length: int) -> bool:
        """Whether a prompt that shares so much with it may have the sequence itself."""
        return holder.kept and length >= holder.length * (1 if holder.pinned else _NEARLY)

    def _take(self, source: _Sequence, keep: int) -> Opening:
        self._tree.truncate(source, keep)
        source.kept = False
        return Opening(seq=source.seq, keep=keep)

    def _place(self, prompt: Tokens, source: _Sequence | None, keep: int, *, cache: bool) -> Opening:
        """A sequence that is free, or made free, and how the beginning gets there."""
        evicted: tuple[Evicted, ...] = ()
        seq = self._room()
        if (victim := self._sequences.get(seq)) is not None:
            held = dict(self._tree.holders(prompt[:-1])).get(victim, 0) if cache else 0
            if held and held >= keep:  # as good, and free of cost
                lost = self._worth_saving(victim)
                gone = () if lost is None else (Evicted(seq, lost, keep=held),)
                return msgspec.structs.replace(self._take(victim, held), evicted=gone)
            evicted = (self._evict(victim),)
        self._free.remove(seq)
        if source is None or (source.key and seq in self._copying):
            return Opening(seq=seq, evicted=evicted)
        self._touch(source)
        if source.key:
            return Opening(seq=seq, keep=keep, restore=source.key, evicted=evicted)
        self._copying |= {seq, source.seq}
        return Opening(seq=seq, keep=keep, copy_from=source.seq, evicted=evicted)

    def _room(self) -> int:
        """A free sequence, or one to evict: beside one that runs if that costs little.

        llama.cpp computes neighbours together, and all others one after the other. A spare one stays free.
        """
        running = {seq for seq, sequence in self._sequences.items() if not sequence.kept}
        beside = {seq + step for seq in running for step in (-1, 1)}
        victims = list(self._victims())
        free = set() if self._spare and len(self._free) == 1 and victims else self._free
        if near := free & beside:
            return min(near)
        for victim in victims:
            worth = victim.length * self.costs.prefill * _CHANCE
            if victim.seq in beside and not victim.pinned and worth < _APART:
                return victim.seq
        return min(free) if free else victims[0].seq

    def bring_together(self, computing: Set[int], most: int) -> Copies:
        """Makes neighbours of these sequences, if that takes at most so many copies of a sequence.

        Returns from where to where, in this order; the source of each is to be cleared at once.
        """
        copies = copies_together(computing, self._free, self._count)
        if len(copies) > most:
            return []
        for source, target in copies:
            self._sequences[target] = sequence = self._sequences.pop(source)
            sequence.seq = target
            self._free.remove(target)
            self._free.add(source)
            self._copying |= {source, target}
        return copies

    # What is in the KV cache

    def extend(self, seq: int, tokens: Tokens) -> None:
        """It holds these too: they have been computed."""
        self._copying.clear()
        sequence = self._sequences[seq]
        if sequence.private:
            sequence.count += len(tokens)
        else:
            self._tree.extend(sequence, tokens)

    def append(self, seq: int, token: int) -> None:
        """As `extend`, for one token."""
        self._copying.clear()
        sequence = self._sequences[seq]
        if sequence.private:
            sequence.count += 1
        else:
            self._tree.append(sequence, token)

    def truncate(self, seq: int, length: int) -> None:
        """It holds only the first `length` of its tokens."""
        sequence = self._sequences[seq]
        if sequence.private:
            sequence.count = min(sequence.count, length)
        elif length < sequence.length:
            self._tree.truncate(sequence, length)

    def length(self, seq: int) -> int:
        """How many tokens a sequence holds; 0 for a free one."""
        sequence = self._sequences.get(seq)
        if sequence is None:
            return 0
        return sequence.count if sequence.private else sequence.length

    def tokens(self, seq: int) -> Tokens:
        """The tokens that a sequence holds which was opened with `cache`."""
        return self._tree.tokens(self._sequences[seq])

    # Ends

    def keep(self, seq: int, *, pin: bool = False) -> tuple[Evicted, ...]:
        """A request has ended, and its sequence waits for others. Returns what has to be cleared.

        A pinned one is evicted after all others. It takes the pin from one with which it shares most of that
        one's tokens, and from the least recently used one if there are too many.
        """
        sequence = self._sequences[seq]
        if sequence.private or not sequence.length:
            self.drop(seq)
            return (Evicted(seq),)
        self._touch(sequence)
        sequence.kept = True
        sequence.pinned |= pin
        if sequence.pinned:
            self._bound_pins(sequence)
        evicted = self.shrink(self._most)
        if self._spare and not self._free and (further := self.evict()):
            return (*evicted, further)
        return evicted

    def drop(self, seq: int) -> None:
        """The sequence is free; whoever calls clears it."""
        sequence = self._sequences.pop(seq)
        if not sequence.private:
            self._tree.remove(sequence)
        self._free.add(seq)

    def evict(self) -> Evicted | None:
        """Gives up the kept sequence that is missed least; None if there is none."""
        victim = next(self._victims(), None)
        return self._evict(victim) if victim else None

    def shrink(self, most: int) -> tuple[Evicted, ...]:
        """Keeps at most so many sequences from now on. Returns what has to be cleared."""
        self._most = most
        victims = list(self._victims())
        return tuple(self._evict(victim) for victim in victims[: max(len(victims) - most, 0)])

    def _bound_pins(self, new: _Sequence) -> None:
        pinned = [other for other in self._kept() if other.pinned and other is not new]
        mine = self._tree.tokens(new)
        for holder, length in self._tree.holders(mine):
            if holder in pinned and length * 2 >= holder.length:
                assert isinstance(holder, _Sequence)
                holder.pinned = False
                pinned.remove(holder)
        for other in sorted([*pinned, new], key=_use)[: max(len(pinned) + 1 - self._pins, 0)]:
            other.pinned = False

    def _victims(self) -> Iterator[_Sequence]:
        """Kept sequences, first to go first: whose whole is held elsewhere, then the least recently used."""
        order = ((kept.pinned, not self._redundant(kept), kept.used, kept) for kept in self._kept())
        return (item[-1] for item in sorted(order, key=lambda item: item[:3]))

    def _redundant(self, sequence: _Sequence) -> bool:
        return sum(not holder.key for holder in sequence.node.holders if isinstance(holder, _Sequence)) > 1

    def _evict(self, victim: _Sequence) -> Evicted:
        tokens = self._worth_saving(victim)
        self.drop(victim.seq)
        return Evicted(victim.seq, tokens)

    def _worth_saving(self, victim: _Sequence) -> Tokens | None:
        """What it holds, if that has to be saved before it is gone."""
        saved = any(holder.key for holder in victim.node.holders if isinstance(holder, _Sequence))
        elsewhere = saved or self._redundant(victim)
        worth = victim.seq not in self._copying and worth_saving(victim.length, self.costs)
        return self._tree.tokens(victim) if worth and not elsewhere else None

    def _kept(self) -> Iterator[_Sequence]:
        return (sequence for sequence in self._sequences.values() if sequence.kept)

    def _touch(self, sequence: _Sequence) -> None:
        self._clock += 1
        sequence.used = self._clock

    # Saved states

    def remember(self, key: str, tokens: Tokens) -> tuple[str, ...]:
        """There is a saved state of these tokens. Returns the keys of those that it makes useless."""
        self.forget(key)
        saved = _Sequence(key=key)
        self._tree.add(saved, tokens)
        self._saved[key] = saved
        held = self._tree.holders(tokens)
        useless = tuple(
            holder.key
            for holder, length in held
            if isinstance(holder, _Sequence) and holder.key not in ("", key) and length == holder.length
        )
        for other in useless:
            self.forget(other)
        return useless

    def forget(self, key: str) -> None:
        """There is no such saved state."""
        if saved := self._saved.pop(key, None):
            self._tree.remove(saved)

    def stats(self) -> Stats:
        """How things stand."""
        kept = list(self._kept())
        shared = (node.size for node in self._tree.nodes() if not node.holders.isdisjoint(kept))
        return Stats(
            kept=len(kept),
            kept_tokens=sum(shared),
            pinned=sum(sequence.pinned for sequence in kept),
            prompts=self._prompts,
            hits=self._hits,
            prompt_tokens=self._prompt_tokens,
            hit_tokens=self._hit_tokens,
        )


def worth_saving(tokens: int, costs: Costs) -> bool:
    """Whether what it costs to save and restore is less than computing again, times the chance of need."""
    return tokens >= _LEAST and costs.prefill * _CHANCE > costs.save + costs.restore


def _use(sequence: _Sequence) -> int:
    return sequence.used
