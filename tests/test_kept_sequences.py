"""What is kept, copied and restored in a real KV cache is what would have been computed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gguf_models import write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from xnai.agents.inference.engine.llama import Batch, Context, open_context, open_weights
from xnai.agents.inference.engine.prefixes import Costs, Evicted, Opening, Streams
from xnai.agents.inference.engine.radix import Tokens
from xnai.agents.inference.engine.saved import SavedStates

SEQUENCES, CONTEXT = 3, 128
SAVED = 100_000  # bytes: of two or three states
TEXTS = [np.random.default_rng(seed).integers(10, 300, 30).astype(np.int32) for seed in range(4)]


class Kept:
    """Does with a real KV cache what the bookkeeping decides."""

    def __init__(self, context: Context, *, copy: float = 0.0) -> None:
        self.context, self.saved = context, SavedStates("tiny", memory=SAVED)
        self.streams = Streams(SEQUENCES, costs=Costs(prefill=1.0, copy=copy, save=0.0, restore=0.1))
        self.batch = Batch(CONTEXT)
        for sequence in range(SEQUENCES):
            context.cut(sequence, 0)

    def clear(self, evicted: tuple[Evicted, ...]) -> None:
        for each in evicted:
            if each.tokens is not None:
                key, lost = self.saved.put(each.tokens, self.context.state(each.seq))
                for other in (*(self.streams.remember(key, each.tokens) if key else ()), *lost):
                    self.saved.drop(other)
                    self.streams.forget(other)
            self.context.cut(each.seq, 0)

    def open(self, prompt: Tokens) -> Opening:
        opening = self.streams.open(prompt)
        assert opening is not None
        state = self.saved.get(opening.restore) if opening.restore else None
        self.clear(opening.evicted)
        if opening.copy_from is not None:
            self.context.copy(opening.copy_from, opening.seq)
        if opening.restore:
            assert state is not None
            assert self.context.restore(opening.seq, state)
        self.context.cut(opening.seq, opening.keep)
        return opening

    def compute(self, seq: int, prompt: Tokens) -> NDArray[np.float32]:
        """The logits behind the prompt."""
        held = self.streams.length(seq)
        self.batch.clear()
        row = self.batch.add(prompt[held:], held, seq, wanted=1)
        assert self.context.decode(self.batch)
        self.streams.extend(seq, prompt[held:])
        return self.context.logits(row).copy()

    def drop(self, seq: int) -> None:
        self.streams.drop(seq)
        self.context.cut(seq, 0)

    def end(self, seq: int) -> None:
        assert self.context.length(seq) == self.streams.length(seq)
        self.clear(self.streams.keep(seq))


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Context, Context]]:
    """One for what is tested, and one that computes everything anew."""
    path = write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    with (
        open_weights(path) as weights,
        open_context(weights, context=CONTEXT, sequences=SEQUENCES, threads=1) as one,
        open_context(weights, context=CONTEXT, sequences=1, threads=1) as other,
    ):
        yield one, other


def anew(context: Context, prompt: Tokens) -> NDArray[np.float32]:
    context.cut(0, 0)
    batch = Batch(CONTEXT)
    row = batch.add(prompt, 0, 0, wanted=1)
    assert context.decode(batch)
    return context.logits(row).copy()


def prompt_of(parts: list[int]) -> Tokens:
    return np.concatenate([TEXTS[part] for part in parts])


def same(kept: Kept, other: Context, seq: int, prompt: Tokens) -> None:
    np.testing.assert_allclose(kept.compute(seq, prompt), anew(other, prompt), atol=1e-3)


prompts = st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=4).map(prompt_of)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    waves=st.lists(st.lists(st.tuples(prompts, st.booleans()), min_size=1, max_size=SEQUENCES), max_size=8),
    copy=st.sampled_from([0.0, 20.0, 1000.0]),
)
def test_a_prompt_goes_on_from_what_is_held_as_if_it_were_computed_anew(
    contexts: tuple[Context, Context], waves: list[list[tuple[Tokens, bool]]], copy: float
) -> None:
    context, other = contexts
    kept = Kept(context, copy=copy)
    for wave in waves:
        running = []
        for prompt, computed in wave:
            seq = kept.open(prompt).seq
            if computed:
                running.append((seq, prompt))
            else:
                kept.end(seq)  # canceled
        for seq, prompt in running:
            same(kept, other, seq, prompt)
        for seq, _ in running:
            kept.end(seq)
        assert kept.saved.in_memory <= SAVED


def test_a_copy_that_is_not_made_yet_is_not_saved(contexts: tuple[Context, Context]) -> None:
    context, other = contexts
    kept = Kept(context)
    one, longer = prompt_of([0, 1, 2]), prompt_of([0, 1, 2, 3])
    first = kept.open(one)
    same(kept, other, first.seq, one)
    second = kept.open(longer)
    assert second.copy_from == first.seq
    kept.end(second.seq)
    kept.drop(first.seq)
    waiting = [
        (kept.open(TEXTS[part]).seq, TEXTS[part]) for part in (1, 2, 3)
    ]  # the last one evicts the copy
    for seq, prompt in waiting:
        same(kept, other, seq, prompt)
        kept.end(seq)
    same(kept, other, kept.open(longer).seq, longer)


def test_what_is_about_to_be_copied_is_not_replaced_by_a_restored_state(
    contexts: tuple[Context, Context],
) -> None:
    context, other = contexts
    kept = Kept(context)
    for prompt in (prompt_of([3, 3, 3]), prompt_of([2, 1, 2]), prompt_of([1, 2, 2]), TEXTS[0]):
        seq = kept.open(prompt).seq
        same(kept, other, seq, prompt)
        kept.end(seq)
    while gone := kept.streams.evict():
        kept.clear((gone,))
    one, longer = prompt_of([0, 1, 2]), prompt_of([0, 1, 2, 3])
    first = kept.open(one)
    same(kept, other, first.seq, one)
    second = kept.open(longer)
    assert second.copy_from == first.seq
    kept.drop(first.seq)
    third = kept.open(prompt_of([3, 3, 3, 0]))
    same(kept, other, second.seq, longer)
    same(kept, other, third.seq, prompt_of([3, 3, 3, 0]))
