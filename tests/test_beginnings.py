"""Texts of which the beginning is known, against texts that are read as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gguf_models import CONTROL, write_model
from hypothesis import given, settings
from hypothesis import strategies as st

from xnai.agents.inference.engine.batches import Tokens
from xnai.agents.inference.engine.beginnings import Beginnings, may_be_cut
from xnai.agents.inference.engine.llama import Vocabulary, open_vocabulary

LONG = "the thing in a hat " * 60
parts = st.text(alphabet="the ining a\n\u2581é<|>", max_size=30) | st.sampled_from(CONTROL)


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "spaced"])
def vocabulary(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vocabulary]:
    path = write_model(tmp_path_factory.mktemp("models") / "tiny.gguf", spaced=request.param)
    with open_vocabulary(path) as found:
        yield found


@settings(max_examples=300, deadline=None)
@given(st.lists(parts, min_size=1, max_size=8), st.booleans())
def test_a_text_that_grows_has_the_tokens_that_it_has_as_a_whole(
    vocabulary: Vocabulary, growth: list[str], begin: bool
) -> None:
    assert vocabulary.beginnings
    text = LONG
    for part in growth:
        text += part
        assert vocabulary.tokenize([text], begin=begin).tolist() == vocabulary.read(text, begin).tolist()


class Reading:
    """Makes a token of each letter, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: str, begin: bool) -> Tokens:
        self.asked.append(text)
        return np.array([ord(letter) for letter in text], np.int32)


def test_what_is_known_is_not_read_again() -> None:
    read = Reading()
    beginnings = Beginnings(read, spaced=False)
    for more in ("", "and more", "and more than that"):
        text = LONG + more
        assert "".join(map(chr, beginnings.tokens(text, True))) == text
    assert len(read.asked[0]) > 1_000
    assert max(map(len, read.asked[1:])) < 40


def test_what_goes_on_in_the_middle_of_a_word_is_read_from_there() -> None:
    read = Reading()
    beginnings = Beginnings(read, spaced=False)
    for text in (f"{LONG}the hat", f"{LONG}the hatter", f"{LONG}there", LONG.replace("hat", "cat")):
        assert "".join(map(chr, beginnings.tokens(text, True))) == text


def test_what_is_remembered_is_bounded() -> None:
    read = Reading()
    beginnings = Beginnings(read, spaced=False)
    for number in range(40):
        beginnings.tokens(f"{number} {'word ' * 10_000}", True)
    read.asked.clear()
    beginnings.tokens(f"0 {'word ' * 10_000}", True)
    beginnings.tokens(f"39 {'word ' * 10_000}", True)
    assert [len(text) > 40_000 for text in read.asked] == [True, False, False]


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ([("\u2581the", False), ("ing", False), ("\u2581\u2581", False), ("<|end|>", True)], True),
        ([("of\u2581the", False)], False),
        ([("\u2581\u2581", True)], False),
        ([("<a b>", True)], False),
        ([("end>", True)], False),
        ([("<end", True)], False),
    ],
)
def test_a_vocabulary_that_joins_words_is_not_cut(words: list[tuple[str, bool]], fits: bool) -> None:
    assert may_be_cut(words) is fits
