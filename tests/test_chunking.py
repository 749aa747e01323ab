"""Passages: verbatim spans that follow the structure of a document and together hold all of it."""

from __future__ import annotations

import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xnai.agents.curation.chunk import LIMIT, Chunk, chunks, weight
from xnai.agents.curation.documents import Document, document
from xnai.agents.curation.prepare import embedding_text, passages, without_duplicates
from xnai.agents.curation.sources import read_sources
from xnai.agents.retrieval.passages import digest

TYPES = ("text/markdown", "text/html", "text/x-rst", "text/plain")
PIECES = st.sampled_from(
    (
        *(
            "# One\n",
            "## Two\n\n",
            "===\n",
            "---\n",
            "```\n",
            "<h2>H</h2>",
            "<pre>",
            "\n\n",
            "\n",
            " ",
            "\u00a0",
        ),
        *("A sentence. ", "!? ", "  indented\n", "word " * 90, "x" * 700, "…" * 300, "漢字" * 400),
        *("e\u0301" * 300, "👩\u200d💻"),
    )
)
TEXTS = st.text(max_size=3000) | st.lists(PIECES, max_size=40).map("".join)


def document_of(text: str, media_type: str = "text/markdown", source: str = "a.md") -> Document:
    found = document(source, text.encode(), media_type)
    assert isinstance(found, Document)
    return found


def words(count: int, *, start: int = 0) -> str:
    return " ".join(f"word{number}" for number in range(start, start + count))


def check(document: Document, found: list[Chunk]) -> None:
    """Every promise that `chunks` makes about any document."""
    edge = 0
    for ordinal, chunk in enumerate(found):
        assert chunk.ordinal == ordinal
        assert document.text[chunk.start : chunk.end] == chunk.text
        assert chunk.text
        assert chunk.text == chunk.text.strip()
        assert chunk.sha256 == hashlib.sha256(chunk.text.encode()).hexdigest()
        assert not document.text[edge : chunk.start].strip()
        assert weight(chunk.text) <= LIMIT
        edge = chunk.end
    assert not document.text[edge:].strip()


@given(TEXTS, st.sampled_from(TYPES))
def test_chunks_of_any_text_are_verbatim_in_order_within_the_limit_and_lose_nothing(
    text: str, media_type: str
) -> None:
    found = document("a", text.encode(), media_type)
    if isinstance(found, Document):
        check(found, chunks(found))
        assert chunks(found) == chunks(found)


def test_chunks_of_every_topic_of_pydoc_keep_the_same_promises() -> None:
    for topic in read_sources(["pydoc:"]):
        assert isinstance(topic, Document)
        check(topic, chunks(topic))


def test_a_heading_begins_a_chunk_that_names_the_headings_above_it() -> None:
    found = chunks(
        document_of("before\n\n# Guide\n\nintro\n\n## Install\n\nhow\n\n### Linux\n\nso\n\n## Use\n\nthus\n")
    )
    assert [(chunk.heading, chunk.text.split("\n")[0]) for chunk in found] == [
        ("", "before"),
        ("Guide", "# Guide"),
        ("Guide > Install", "## Install"),
        ("Guide > Install > Linux", "### Linux"),
        ("Guide > Use", "## Use"),
    ]


def test_a_heading_with_only_deeper_headings_below_it_joins_the_first_of_them() -> None:
    found = chunks(document_of("# Guide\n\n## Install\n\nhow\n\n## Empty\n\n## Last\n"))
    assert [(chunk.heading, chunk.text) for chunk in found] == [
        ("Guide > Install", "# Guide\n\n## Install\n\nhow"),
        ("Guide > Empty", "## Empty"),
        ("Guide > Last", "## Last"),
    ]


def test_a_long_section_is_cut_between_paragraphs() -> None:
    paragraphs = [words(40, start=40 * number) for number in range(12)]
    found = chunks(document_of("\n\n".join(paragraphs)))
    assert len(found) > 2
    assert [part for chunk in found for part in chunk.text.split("\n\n")] == paragraphs


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    sentences = [f"{words(12, start=12 * number)}." for number in range(40)]
    found = chunks(document_of(" ".join(sentences)))
    assert len(found) > 2
    assert all(chunk.text.endswith(".") for chunk in found)


def test_a_text_without_sentences_is_cut_between_lines_and_then_words() -> None:
    lines = [words(10, start=10 * number) for number in range(60)]
    assert all(chunk.text.split("\n")[-1] in lines for chunk in chunks(document_of("\n".join(lines))))
    found = chunks(document_of(words(500)))
    assert " ".join(chunk.text for chunk in found) == words(500)


def test_the_parts_of_a_long_section_are_about_equal() -> None:
    weights = [weight(chunk.text) for chunk in chunks(document_of(words(150)))]
    assert len(weights) == 2
    assert max(weights) - min(weights) < 20


def test_code_is_kept_whole_when_it_fits() -> None:
    code = "```\n" + "\n\n".join(words(8, start=8 * number) for number in range(10)) + "\n```"
    text = f"{words(60)}\n\n{code}\n\n{words(60)}"
    assert any(code in chunk.text for chunk in chunks(document_of(text)))


def test_code_that_does_not_fit_is_cut_between_lines() -> None:
    lines = [words(8, start=8 * number) for number in range(60)]
    found = chunks(document_of("```\n" + "\n".join(lines) + "\n```"))
    assert len(found) > 3
    assert all(line in lines or line == "```" for chunk in found for line in chunk.text.split("\n"))


def test_other_scripts_get_smaller_chunks_because_they_take_more_of_the_model() -> None:
    chinese = chunks(document_of("漢字。" * 1000))
    assert max(len(chunk.text) for chunk in chinese) <= LIMIT // 4


@pytest.mark.parametrize("cluster", ["e\u0301", "👩\u200d💻", "❤\ufe0f"])
def test_a_word_that_must_be_cut_keeps_marks_with_their_letter(cluster: str) -> None:
    for before in range(8):
        for chunk in chunks(document_of("x" * before + cluster * 600)):
            assert not unicodedata.combining(chunk.text[0])
            assert chunk.text[0] not in "\u200d\ufe0f💻"


def test_a_heading_of_any_length_leaves_room_for_text() -> None:
    found = chunks(document_of(f"# {words(3000)}\n\n{words(300)}\n"))
    assert all(len(chunk.heading) <= 200 for chunk in found)
    assert sum(len(chunk.text) for chunk in found) > 20_000


# Passages


def test_a_passage_is_embedded_with_the_headings_above_it() -> None:
    guide, install = passages(document_of("# Guide\n\nintro\n\n## Install\n\nhow"))
    assert embedding_text(install) == "Guide > Install\n\n## Install\n\nhow"
    assert (guide.title, guide.parts, install.parts) == ("Guide", 2, 2)
    (plain,) = passages(document_of("only text", "text/plain", "docs/note.txt"))
    assert embedding_text(plain) == "note\n\nonly text"


def test_a_passage_that_only_moved_keeps_its_id() -> None:
    before = {passage.id for passage in passages(document_of("# One\n\na\n\n# Two\n\nb\n"))}
    after = passages(document_of("# Zero\n\nnew\n\n# One\n\na\n\n# Two\n\nb\n"))
    assert [passage.id in before for passage in after] == [False, True, True]


def test_equal_passages_of_one_document_have_ids_of_their_own() -> None:
    found = passages(document_of("# Same\n\ntext\n\n# Same\n\ntext\n"))
    assert [passage.repeat for passage in found] == [0, 1]
    assert found[0].sha256 == found[1].sha256
    assert found[0].id != found[1].id


@given(TEXTS)
def test_ids_never_collide_within_a_document_or_between_two(text: str) -> None:
    first = document("a.md", text.encode(), "text/markdown")
    second = document("b.md", text.encode(), "text/markdown")
    if isinstance(first, Document) and isinstance(second, Document):
        ids = [passage.id for passage in (*passages(first), *passages(second))]
        assert len(ids) == len(set(ids))


# Duplicates


def test_a_digest_sees_words_and_not_how_they_are_set() -> None:
    same = ["Title\n=====\n\nthe caf\u00e9", "Title\n*****\nthe   cafe\u0301\n", " Title the\ncaf\u00e9 "]
    assert len({digest(text) for text in same}) == 1
    assert len({digest(text) for text in ("a + b", "a - b", "A + b", "a +b")}) == 4


def test_of_documents_that_say_the_same_the_first_stays() -> None:
    documents = [document_of("the text\n", source=name) for name in ("a", "b", "c")]
    other = document_of("other text", source="d")
    assert without_duplicates([*documents, other], {}) == ([documents[0], other], {"b": "a", "c": "a"})


def test_a_document_that_repeats_a_stored_one_is_left_out_and_never_the_stored_one_itself() -> None:
    a, b = (document_of("the text", source=name) for name in ("a", "b"))
    held = {digest("the text"): "b"}
    assert without_duplicates([a, b], held) == ([b], {"a": "b"})
    assert without_duplicates([a], held) == ([], {"a": "b"})


def test_a_document_is_no_duplicate_of_what_another_one_said_before_it_changed() -> None:
    a, b = document_of("the text", source="a"), document_of("new text", source="b")
    assert without_duplicates([a, b], {digest("the text"): "b"}) == ([a, b], {})
