"""The passage store on a real embedded Qdrant."""

from __future__ import annotations

import gc
import hashlib
import http.server
import os
import pickle
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client.local.local_collection import LocalCollection
from qdrant_client.local.qdrant_local import QdrantLocal

from xnai.agents.curation.documents import Document, document
from xnai.agents.curation.prepare import passages
from xnai.agents.curation.sources import read_sources
from xnai.agents.retrieval.errors import StoreDamaged, StoreError, StoreLocked, StoreMismatch
from xnai.agents.retrieval.passages import Embedded, Passage, Stored, digest
from xnai.agents.retrieval.store import Store, open_store
from xnai.protocol import InvalidArgument

DIMENSIONS = 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "passages"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with open_store(str(folder), DIMENSIONS) as store:
        yield store


def vector_of(text: str) -> list[float]:
    """The same vector for the same text, and nearly a right angle between any two others."""
    seed = hashlib.shake_256(text.encode()).digest(DIMENSIONS)
    return [byte - 127.5 for byte in seed]


def passages_of(source: str, text: str) -> list[Passage]:
    found = document(source, text.encode(), "text/markdown")
    assert isinstance(found, Document)
    return passages(found)


def embedded(found: Sequence[Passage]) -> list[Embedded]:
    return [Embedded(passage=passage, vector=vector_of(passage.text)) for passage in found]


def ingest(store: Store, source: str, text: str) -> Stored:
    found = passages_of(source, text)
    stored = store.put(embedded(found))
    store.forget(source, keep=[passage.id for passage in found])
    return stored


GUIDE = "# Guide\n\nintro\n\n## Install\n\nhow\n\n## Use\n\nthus\n"


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
        return {hit.passage.source for hit in hits}

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


# Opening

HOLD = """
import sys
from xnai.agents.retrieval.store import open_store
with open_store(sys.argv[1], 16):
    print("open", flush=True)
    sys.stdin.read()
"""
HOLD_BY_QDRANT = """
import sys
from qdrant_client import QdrantClient
client = QdrantClient(path=sys.argv[1])
print("open", flush=True)
sys.stdin.read()
client.close()
"""
WATCHED = """
import sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise SystemExit(f"used the network: {event} {arguments}")

sys.addaudithook(watch)
from xnai.agents.retrieval.store import open_store
with open_store(sys.argv[1], 16) as store:
    assert store.search([1.0] * 16) == []
print("quiet")
"""


@contextmanager
def holding(program: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_has_open_is_refused_and_free_when_that_one_is_killed(
    folder: Path,
) -> None:
    with holding(HOLD, folder) as process:
        with pytest.raises(StoreLocked) as caught, open_store(str(folder), DIMENSIONS):
            pass
        assert f"process {process.pid} " in str(caught.value)
        assert caught.value.code == "store_locked"
    with open_store(str(folder), DIMENSIONS) as store:
        assert store.count() == 0


def test_a_folder_that_another_program_of_qdrant_has_open_is_refused(folder: Path) -> None:
    with holding(HOLD_BY_QDRANT, folder), pytest.raises(StoreLocked), open_store(str(folder), DIMENSIONS):
        pass


def test_a_folder_is_private_and_opens_again_at_once(folder: Path) -> None:
    for _ in range(3):
        with (
            open_store(str(folder), DIMENSIONS),
            pytest.raises(StoreLocked),
            open_store(str(folder), DIMENSIONS),
        ):
            pass
    assert folder.stat().st_mode & 0o777 == 0o700


def test_vectors_of_another_length_or_model_are_refused(folder: Path) -> None:
    with open_store(str(folder), DIMENSIONS, model="minilm") as store:
        ingest(store, "a.md", GUIDE)
    for dimensions, model in ((8, "minilm"), (DIMENSIONS, "other")):
        with pytest.raises(StoreMismatch) as caught, open_store(str(folder), dimensions, model=model):
            pass
        assert caught.value.code == "store_mismatch"
    with open_store(str(folder), DIMENSIONS, model="minilm") as store:
        assert store.count() == 3


def damage_meta(folder: Path) -> None:
    (folder / "meta.json").write_text('{"collections": {')


def damage_database(folder: Path) -> None:
    database = folder / "collection" / "passages" / "storage.sqlite"
    database.write_bytes(b"not a database" * 1000)


def damage_point(folder: Path) -> None:
    database = folder / "collection" / "passages" / "storage.sqlite"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE points SET point = ?", (pickle.dumps("no point"),))


def test_the_errors_of_a_store_have_stable_codes() -> None:
    codes = [error.code for error in (StoreError, StoreLocked, StoreMismatch, StoreDamaged)]
    assert codes == ["store_unavailable", "store_locked", "store_mismatch", "store_damaged"]


@pytest.mark.parametrize("damage", [damage_meta, damage_database, damage_point])
def test_a_damaged_folder_says_so(folder: Path, damage: Callable[[Path], None]) -> None:
    with open_store(str(folder), DIMENSIONS) as store:
        ingest(store, "a.md", GUIDE)
    damage(folder)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        with pytest.raises(StoreDamaged, match=re.escape(str(folder))), open_store(str(folder), DIMENSIONS):
            pass
        # Qdrant leaves its database open when it cannot read it: Python 3.13 says so when that is collected.
        gc.collect()


def test_a_place_that_can_be_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError) as caught, open_store(str(place), DIMENSIONS):
            pass
        assert caught.value.code == "store_unavailable"


def test_a_server_that_is_not_there_is_an_error_and_not_a_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        pytest.raises(StoreError, match="does not answer"),
        open_store(f"http://127.0.0.1:{port}", DIMENSIONS),
    ):
        pass


class _Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_is_no_qdrant_is_an_error() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with pytest.raises(StoreError), open_store(f"http://127.0.0.1:{server.server_port}", DIMENSIONS):
                pass
        finally:
            server.shutdown()
            thread.join()


def test_an_embedded_store_never_touches_the_network(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WATCHED, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "quiet\n", "")


def test_advice_for_programmers_of_qdrant_does_not_reach_the_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Qdrant warns from 20,000 points on; here from two on, because writing so many would take ten seconds.
    monkeypatch.setattr(LocalCollection, "LARGE_DATA_THRESHOLD", 1)
    monkeypatch.setattr(QdrantLocal, "LARGE_DATA_THRESHOLD", 1)
    for _ in range(2):
        with open_store(str(folder), DIMENSIONS) as store:
            ingest(store, "a.md", GUIDE)
