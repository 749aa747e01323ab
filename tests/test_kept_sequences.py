"""What is kept, copied and restored in a real KV cache is what would have been computed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gguf_models import write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from xnai.agents.inference.engine.batches import Batch
from xnai.agents.inference.engine.llama import Context, open_context, open_weights
from xnai.agents.inference.engine.radix import Tokens
from xnai.agents.inference.engine.saved import SavedStates
from xnai.agents.inference.engine.sequences import Sequences

SEQUENCES, CONTEXT = 3, 128
SAVED = 200_000  # bytes: of two or three states
TOKEN = 256  # bytes: keys and values of two heads of 16 in two layers, of two bytes each
TEXTS = [np.random.default_rng(seed).integers(10, 300, 30).astype(np.int32) for seed in range(4)]


class Engine:
    """Computes prompts in what the sequences hold, and compares with a context that computes them anew."""

    def __init__(self, contexts: tuple[Context, Context], *, prefill: float = 1.0) -> None:
        self.context, self.other = contexts
        for sequence in range(SEQUENCES):
            self.context.cut(sequence, 0)
        self.saved = SavedStates("tiny", memory=SAVED)
        self.sequences = Sequences(self.context, self.saved, token_bytes=TOKEN)
        self.sequences.prefill_costs(prefill)

    def open(self, prompt: Tokens) -> tuple[int, int]:
        """The sequence, and how many tokens are there."""
        opened = self.sequences.open(prompt, cache=True)
        assert opened is not None
        assert self.context.length(opened[0]) == opened[1]
        return opened

    def check(self, sequence: int, prompt: Tokens) -> None:
        """Computes the rest of the prompt, and its logits are those of the whole."""
        held = self.context.length(sequence)
        found = logits(self.context, prompt[held:], held, sequence)
        self.sequences.hold(sequence, prompt[held:])
        self.other.cut(0, 0)
        np.testing.assert_allclose(found, logits(self.other, prompt, 0, 0), atol=1e-3)

    def whole(self, prompt: Tokens) -> None:
        """The life of a request."""
        sequence, _ = self.open(prompt)
        self.check(sequence, prompt)
        self.sequences.keep(sequence, pin=False)


def logits(context: Context, tokens: Tokens, position: int, sequence: int) -> NDArray[np.float32]:
    batch = Batch(CONTEXT)
    row = batch.add(tokens, position, sequence, wanted=1)
    assert context.decode(batch)
    return context.logits(row).copy()


def prompt_of(parts: list[int]) -> Tokens:
    return np.concatenate([TEXTS[part] for part in parts])


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


prompts = st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=4).map(prompt_of)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    waves=st.lists(st.lists(st.tuples(prompts, st.booleans()), min_size=1, max_size=SEQUENCES), max_size=8),
    prefill=st.sampled_from([1.0, 1e-5, 1e-9]),
    worth=st.sampled_from([0.0, 1.0]),
)
def test_a_prompt_goes_on_from_what_is_held_as_if_it_were_computed_anew(
    contexts: tuple[Context, Context], waves: list[list[tuple[Tokens, bool]]], prefill: float, worth: float
) -> None:
    engine = Engine(contexts, prefill=prefill)
    for wave in waves:
        running = []
        for prompt, computed in wave:
            sequence, _ = engine.open(prompt)
            if computed:
                running.append((sequence, prompt))
            else:
                engine.sequences.keep(sequence, pin=False)  # canceled
        moved = engine.sequences.bring_together({sequence for sequence, _ in running}, worth)
        running = [(moved.get(sequence, sequence), prompt) for sequence, prompt in running]
        for sequence, prompt in running:
            engine.check(sequence, prompt)
        for sequence, _ in running:
            engine.sequences.keep(sequence, pin=False)
        assert engine.saved.in_memory <= SAVED


def test_what_is_to_be_restored_is_read_before_it_has_to_make_room(contexts: tuple[Context, Context]) -> None:
    engine = Engine(contexts)
    distinct = [prompt_of([part, last, part]) for last in (0, 1, 2) for part in range(4)]
    for prompt in distinct:
        engine.whole(prompt)
    kept = engine.sequences.stats().kept
    assert kept == SEQUENCES
    longest = [engine.sequences.longest(prompt) for prompt in distinct[:-kept]]
    oldest = next(prompt for prompt, length in zip(distinct, longest, strict=False) if length == 89)
    assert engine.open(oldest)[1] == 89


def test_a_copy_that_is_not_made_yet_is_not_saved(contexts: tuple[Context, Context]) -> None:
    engine = Engine(contexts)
    one, longer = prompt_of([0, 1, 2]), prompt_of([0, 1, 2, 3])
    first, _ = engine.open(one)
    engine.check(first, one)
    second, there = engine.open(longer)
    assert there == len(one)
    engine.sequences.keep(second, pin=False)
    engine.sequences.drop(first)
    waiting = [
        (engine.open(TEXTS[part])[0], TEXTS[part]) for part in (1, 2, 3)
    ]  # the last one evicts the copy
    for sequence, prompt in waiting:
        engine.check(sequence, prompt)
        engine.sequences.drop(sequence)
    engine.whole(longer)


def test_what_is_about_to_be_copied_is_not_replaced_by_a_restored_state(
    contexts: tuple[Context, Context],
) -> None:
    engine = Engine(contexts)
    other = prompt_of([3, 3, 3])
    engine.whole(other)
    engine.sequences.shrink(0)
    engine.sequences.shrink(SEQUENCES)
    assert engine.sequences.longest(other) == len(other) - 1
    one, longer = prompt_of([0, 1, 2]), prompt_of([0, 1, 2, 3])
    first, _ = engine.open(one)
    engine.check(first, one)
    second, there = engine.open(longer)
    assert there == len(one)
    engine.sequences.drop(first)
    third, _ = engine.open(other)
    assert third == first
    engine.check(second, longer)
    engine.check(third, other)
