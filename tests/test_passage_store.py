"""What a passage store keeps, forgets and finds, on a real embedded Qdrant."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingesting import DIMENSIONS, GUIDE, embedded, ingest, passages_of, vector_of

from xnai.agents.curation.documents import Document
from xnai.agents.curation.prepare import passages
from xnai.agents.curation.sources import read_sources
from xnai.agents.retrieval.passages import Embedded, Stored, digest
from xnai.agents.retrieval.store import Store, open_store
from xnai.protocol import InvalidArgument


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "passages"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with open_store(str(folder), DIMENSIONS) as store:
        yield store


# Storing


def test_a_stored_passage_is_found_as_it_was_with_its_source(store: Store) -> None:
    found = passages_of("docs/guide.md", GUIDE)
    assert store.put(embedded(found)) == Stored(new=3)
    (hit,) = store.search(vector_of(found[1].text), 1)
    assert hit.passage == found[1]
    assert hit.score == pytest.approx(1.0)
    assert hit.ingested.tzinfo is not None
    assert (hit.passage.source, hit.passage.heading) == ("docs/guide.md", "Guide > Install")


def test_storing_again_changes_nothing(store: Store) -> None:
    ingest(store, "a.md", GUIDE)
    before = store.search(vector_of("intro"), 10)
    assert ingest(store, "a.md", GUIDE) == Stored(unchanged=3)
    assert store.search(vector_of("intro"), 10) == before


def test_what_was_stored_is_there_after_reopening(folder: Path) -> None:
    with open_store(str(folder), DIMENSIONS) as store:
        ingest(store, "a.md", GUIDE)
        before = store.search(vector_of("intro"), 10)
    with open_store(str(folder), DIMENSIONS) as store:
        assert store.count() == 3
        assert ingest(store, "a.md", GUIDE) == Stored(unchanged=3)
        after = store.search(vector_of("intro"), 10)
    assert [hit.passage for hit in after] == [hit.passage for hit in before]
    assert [hit.ingested for hit in after] == [hit.ingested for hit in before]


def test_the_folder_keeps_a_write_ahead_log_because_each_passage_is_flushed_by_itself(folder: Path) -> None:
    with open_store(str(folder), DIMENSIONS):
        pass
    with closing(sqlite3.connect(folder / "collection" / "passages" / "storage.sqlite")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_changed_document_replaces_the_passages_that_changed(store: Store) -> None:
    ingest(store, "a.md", GUIDE)
    ingest(store, "b.md", GUIDE)
    stored = ingest(store, "a.md", GUIDE.replace("intro", "a longer introduction"))
    assert stored == Stored(new=1, changed=2)
    assert store.count() == 6
    texts = {hit.passage.text for hit in store.search(vector_of(""), 10, under="a.md")}
    assert "# Guide\n\na longer introduction" in texts
    assert "# Guide\n\nintro" not in texts


def test_forgetting_a_source_leaves_the_others_alone(store: Store) -> None:
    ingest(store, "a.md", GUIDE)
    ingest(store, "a.md.old", GUIDE)
    assert store.forget("a.md") == 3
    assert store.forget("a.md") == 0
    assert {hit.passage.source for hit in store.search(vector_of(""), 10)} == {"a.md.old"}


@given(order=st.permutations(range(6)), cut=st.integers(0, 6), repeat=st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_order_and_number_of_puts_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cut: int, repeat: bool
) -> None:
    whole = embedded([*passages_of("a.md", GUIDE), *passages_of("b.md", GUIDE)])
    mixed = [whole[number] for number in order]
    with open_store(str(tmp_path_factory.mktemp("passages")), DIMENSIONS) as store:
        parts = [mixed[:cut], mixed[cut:], *([mixed] if repeat else [])]
        assert sum(store.put(part).new for part in parts) == 6
        assert store.count() == 6
        assert store.known({"a.md": whole[0].passage.document_sha256}, recipe=1) == {"a.md"}


@pytest.mark.parametrize("vector", [[1.0] * 3, [float("nan")] * DIMENSIONS, [0.0] * DIMENSIONS])
def test_a_vector_that_cannot_be_compared_is_refused_before_anything_is_stored(
    store: Store, vector: list[float]
) -> None:
    good, *_ = embedded(passages_of("a.md", GUIDE))
    with pytest.raises(InvalidArgument):
        store.put([good, Embedded(passage=good.passage, vector=vector)])
    assert store.count() == 0
    with pytest.raises(InvalidArgument):
        store.search(vector)


# Known documents and duplicates


def test_a_document_is_known_once_it_is_stored_whole_and_until_it_changes(store: Store) -> None:
    found = passages_of("a.md", GUIDE)
    sha256 = found[0].document_sha256
    store.put(embedded(found[:2]))
    assert store.known({"a.md": sha256}, recipe=1) == set()
    store.put(embedded(found))
    assert store.known({"a.md": sha256, "b.md": sha256}, recipe=1) == {"a.md"}
    assert store.known({"a.md": "0" * 64}, recipe=1) == set()
    assert store.known({"a.md": sha256}, recipe=2) == set()
    assert store.known({}, recipe=1) == set()


def test_a_document_with_passages_of_an_earlier_version_left_is_not_known(store: Store) -> None:
    ingest(store, "a.md", GUIDE)
    changed = passages_of("a.md", "# Other\n\ntext")
    store.put(embedded(changed))
    assert store.known({"a.md": changed[0].document_sha256}, recipe=1) == set()
    store.forget("a.md", keep=[passage.id for passage in changed])
    assert store.known({"a.md": changed[0].document_sha256}, recipe=1) == {"a.md"}


def test_a_document_whose_replacement_broke_off_is_not_known_even_if_the_number_fits(store: Store) -> None:
    for number in range(8):
        source = f"{number}.md"
        ingest(store, source, "old text")
        changed = passages_of(source, "# One\n\na\n\n# Two\n\nb\n")
        store.put(embedded(changed[:1]))
        assert store.count(source) == changed[0].parts
        assert store.known({source: changed[0].document_sha256}, recipe=1) == set()


def test_the_holder_of_a_digest_is_a_document_that_is_stored_whole(store: Store) -> None:
    ingest(store, "b.md", GUIDE)
    store.put(embedded(passages_of("a.md", GUIDE)[:1]))
    assert store.holders([digest(GUIDE), digest("other")]) == {digest(GUIDE): "b.md"}
    ingest(store, "a.md", GUIDE)
    assert store.holders([digest(GUIDE)]) == {digest(GUIDE): "a.md"}


# Searching


def test_hits_come_best_first_and_no_more_than_asked_for(store: Store) -> None:
    texts = [f"text {number}" for number in range(50)]
    for number, text in enumerate(texts):
        ingest(store, f"{number}.md", text)
    hits = store.search(vector_of("text 7"), 10)
    assert hits[0].passage.text == "text 7"
    assert len(hits) == 10
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(store.search(vector_of("text 7"), 1000)) == 50


def test_passages_that_say_the_same_are_one_hit_that_names_every_source(store: Store) -> None:
    for number in range(30):
        ingest(store, f"{number:02}.md", "the licence")
    ingest(store, "other.md", "other text")
    first, second = store.search(vector_of("the licence"), 2)
    assert first.passage.source == "00.md"
    assert first.also == tuple(f"{number:02}.md" for number in range(1, 30))
    assert (second.passage.source, second.also) == ("other.md", ())


def test_a_search_can_be_kept_to_a_folder_a_document_or_a_scheme(store: Store) -> None:
    sources = ("docs/guide/a.md", "docs/guide.md", "docs-old/b.md", "pydoc:if", "/etc/x.md")
    for source in sources:
        ingest(store, source, f"text of {source}")

    def found(under: str) -> set[str]:
        hits = store.search(vector_of("text"), 10, under=under)
        assert store.count(under) == len(hits)
        assert store.sources(under) == {hit.passage.source for hit in hits}
        return store.sources(under)

    assert found("docs") == {"docs/guide/a.md", "docs/guide.md"}
    assert found("docs/guide") == {"docs/guide/a.md"}
    assert found("docs/guide.md") == {"docs/guide.md"}
    assert found("pydoc:") == found("pydoc:if") == {"pydoc:if"}
    assert found("/etc") == {"/etc/x.md"}
    assert found("doc") == set()


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_limit_out_of_range_is_refused(store: Store, limit: int) -> None:
    with pytest.raises(InvalidArgument):
        store.search(vector_of("a"), limit)


def test_an_empty_store_answers(store: Store) -> None:
    assert store.search(vector_of("a")) == []
    assert store.count() == 0
    assert store.holders(["a"]) == {}


def test_every_span_found_in_pydoc_stands_in_its_topic(store: Store) -> None:
    texts: dict[str, str] = {}
    for topic in read_sources(["pydoc:"]):
        assert isinstance(topic, Document)
        texts[topic.source] = topic.text
        store.put(embedded(passages(topic)))
    for hit in store.search(vector_of("any question"), 1000):
        assert texts[hit.passage.source][hit.passage.start : hit.passage.end] == hit.passage.text
