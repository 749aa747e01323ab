"""From the bytes of tokens to the text that may leave."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from xnai.agents.inference.engine.text import TextStream


@given(
    text=st.text(alphabet="ab🙂é", max_size=30),
    stop=st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=3), max_size=3),
    cuts=st.lists(st.integers(0, 120), max_size=10),
)
def test_a_whole_text_leaves_or_what_stands_before_a_stop_string(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    data, stream = text.encode(), TextStream(stop)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    said = ""
    for start, end in pairwise(edges):
        if not stream.stopped:
            said += stream.push(data[start:end])
    if any(word in text for word in stop):
        assert stream.stopped
        assert any(text.startswith(said + word) for word in stop)
        assert not any(word in said for word in stop)
    else:
        assert said + stream.flush() == text
