"""The retrieval agent on a real bus, with embedded Qdrant and the real embedding model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from xnai.agents import serve
from xnai.agents.curation.chunk import RECIPE
from xnai.agents.curation.documents import Document, document
from xnai.agents.curation.prepare import embedding_text, passages
from xnai.agents.inference.agent import agent as inference
from xnai.agents.inference.agent import configure as configure_inference
from xnai.agents.inference.requests import MINILM, Embeddings
from xnai.agents.retrieval.agent import agent as retrieval
from xnai.agents.retrieval.agent import configure
from xnai.agents.retrieval.errors import StoreError, StoreLocked
from xnai.agents.retrieval.passages import Embedded, Hit, Passage, Stored
from xnai.agents.retrieval.requests import KnownRequest, SearchRequest, StoreRequest
from xnai.agents.testing import running
from xnai.bus import Bus, Server, open_bus
from xnai.protocol import InvalidSettings, TaskRejected

CATS = "# Cats\n\nA cat sleeps for most of the day.\n\n## Food\n\nCats eat fish and mice.\n"
PLANETS = "# Planets\n\nJupiter is the largest planet of the solar system.\n"


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path) -> None:
    configure_inference({"threads": 1}, tmp_path / ".xnai")
    configure({}, tmp_path / ".xnai")


def read(source: str, text: str) -> Document:
    found = document(source, text.encode(), "text/markdown")
    assert isinstance(found, Document)
    return found


async def request_for(bus: Bus, found: Sequence[Passage], *, model: str = "") -> StoreRequest:
    """As curation makes it, for all passages of one document."""
    texts = [embedding_text(passage) for passage in found]
    answer = await bus.call("inference.embed", texts, Embeddings)
    return StoreRequest(
        model=model or answer.model,
        passages=tuple(
            Embedded(passage=passage, vector=vector)
            for passage, vector in zip(found, answer.vectors, strict=True)
        ),
        whole={found[0].source: tuple(passage.id for passage in found)},
    )


async def store(bus: Bus, source: str, text: str) -> Stored:
    request = await request_for(bus, passages(read(source, text)))
    return await bus.call("retrieval.store", request, Stored)


async def search(bus: Bus, query: str, under: str | None = None, limit: int = 5) -> list[Hit]:
    request = SearchRequest(query=query, under=under, limit=limit)
    return await bus.call("retrieval.search", request, list[Hit])


async def test_the_passage_that_answers_comes_first_with_its_place() -> None:
    with anyio.fail_after(30):
        async with running(inference, retrieval) as bus:
            await store(bus, "animals/cats.md", CATS)
            await store(bus, "space/planets.md", PLANETS)
            best, *others = await search(bus, "What does my kitten like for dinner?")
    assert (best.passage.source, best.passage.heading) == ("animals/cats.md", "Cats > Food")
    assert read("animals/cats.md", CATS).text[best.passage.start : best.passage.end] == best.passage.text
    assert all(best.score > other.score for other in others)


async def test_a_search_can_be_kept_to_a_folder() -> None:
    with anyio.fail_after(30):
        async with running(inference, retrieval) as bus:
            await store(bus, "animals/cats.md", CATS)
            await store(bus, "space/planets.md", PLANETS)
            hits = await search(bus, "What do cats eat?", under="space")
            assert [hit.passage.source for hit in hits] == ["space/planets.md"]
            assert len(await search(bus, "What do cats eat?", limit=1)) == 1


async def test_storing_twice_changes_nothing_and_outlives_the_process() -> None:
    with anyio.fail_after(30):
        async with running(inference, retrieval) as bus:
            assert await store(bus, "animals/cats.md", CATS) == Stored(new=2)
            assert await store(bus, "animals/cats.md", CATS) == Stored(unchanged=2)
            before = await search(bus, "cats")
        async with running(inference, retrieval) as bus:
            after = await search(bus, "cats")
    assert [(hit.passage, hit.ingested) for hit in after] == [(hit.passage, hit.ingested) for hit in before]


async def test_what_a_document_no_longer_says_is_forgotten() -> None:
    with anyio.fail_after(30):
        async with running(inference, retrieval) as bus:
            await store(bus, "animals/cats.md", CATS)
            await store(bus, "animals/cats.md", CATS.replace("fish and mice", "birds"))
            hits = await search(bus, "What do cats eat?")
            assert sorted("birds" in hit.passage.text for hit in hits) == [False, True]
            assert not any("fish" in hit.passage.text for hit in hits)
            await bus.call("retrieval.store", StoreRequest(whole={"animals/cats.md": ()}), Stored)
            assert await search(bus, "What do cats eat?") == []


async def test_it_tells_what_it_holds() -> None:
    cats = read("animals/cats.md", CATS)
    (first, *_) = passages(cats)
    with anyio.fail_after(30):
        async with running(inference, retrieval) as bus:
            await store(bus, cats.source, CATS)
            asked = KnownRequest(documents={cats.source: cats.sha256, "else.md": cats.sha256}, recipe=RECIPE)
            assert await bus.call("retrieval.known", asked, list[str]) == [cats.source]
            changed = KnownRequest(documents={cats.source: "0" * 64}, recipe=RECIPE)
            assert await bus.call("retrieval.known", changed, list[str]) == []
            digests = [first.document_digest, "0" * 64]
            held = await bus.call("retrieval.holders", digests, dict[str, str])
            assert held == {first.document_digest: cats.source}
            assert await bus.call("retrieval.sources", "animals", list[str]) == [cats.source]
            assert await bus.call("retrieval.sources", "space", list[str]) == []


async def test_vectors_of_another_model_are_refused() -> None:
    with anyio.fail_after(30):
        async with running(inference, retrieval) as bus:
            request = await request_for(bus, passages(read("cats.md", CATS)), model="word2vec")
            with pytest.raises(TaskRejected, match=f"vectors of word2vec.* holds those of {MINILM}"):
                await bus.call("retrieval.store", request, Stored)


async def test_a_vector_of_another_length_is_refused() -> None:
    (passage, *_) = passages(read("cats.md", CATS))
    request = StoreRequest(model=MINILM, passages=(Embedded(passage=passage, vector=[1.0]),))
    with anyio.fail_after(30):
        async with running(retrieval) as bus:
            with pytest.raises(TaskRejected, match="a vector of 1 numbers does not fit one of 384"):
                await bus.call("retrieval.store", request, Stored)


@pytest.mark.parametrize("request_", [{"query": ""}, {"query": "cats", "limit": 0}, {"limit": 3}])
async def test_a_search_for_nothing_is_refused(request_: dict[str, object]) -> None:
    with anyio.fail_after(30):
        async with running(retrieval) as bus:
            with pytest.raises(TaskRejected, match="This is no SearchRequest"):
                await bus.call("retrieval.search", request_, list[Hit])


async def test_only_one_process_opens_the_store(server: Server) -> None:
    with anyio.fail_after(30):
        async with (
            open_bus(server.url, token=server.token, name="retrieval") as bus,
            serve(retrieval, bus, drain=0.0),
        ):
            with pytest.raises(StoreLocked, match="only one may"):
                async with serve(retrieval, bus, drain=0.0):
                    pass


async def test_a_server_that_does_not_answer_is_an_error_of_the_start(tmp_path: Path) -> None:
    configure({"url": "http://127.0.0.1:1"}, tmp_path / ".xnai")
    with anyio.fail_after(30), pytest.raises(StoreError, match=r"http://127\.0\.0\.1:1 does not answer"):
        async with running(retrieval):
            pass
    assert not (tmp_path / ".xnai").exists()


async def test_run_by_hand_it_keeps_passages_in_the_stack_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (below := tmp_path / "stack" / "below").mkdir(parents=True)
    monkeypatch.setattr(configure, "folder", None)
    monkeypatch.chdir(below)
    with anyio.fail_after(30):
        with pytest.raises(InvalidSettings, match=r"There is no \.xnai folder in .*below or above it"):
            async with running(retrieval):
                pass
        (tmp_path / "stack" / ".xnai").mkdir()
        async with running(retrieval):
            assert (tmp_path / "stack" / ".xnai" / "retrieval").is_dir()


def test_settings_that_do_not_exist_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"\[agents\.retrieval\.settings\] address: "):
        configure({"address": "http://127.0.0.1:1"}, tmp_path)
