"""Taking in documents: what is read, what is stored, and what happens the second time."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from xnai.agents.curation.agent import agent as curation
from xnai.agents.curation.documents import Document, Skipped
from xnai.agents.curation.planning import Fingerprint, Plan, Stock, plan
from xnai.agents.curation.requests import IngestRequest, Progress
from xnai.agents.curation.sources import read_sources
from xnai.agents.inference.agent import agent as inference
from xnai.agents.inference.agent import configure as configure_inference
from xnai.agents.retrieval.agent import agent as retrieval
from xnai.agents.retrieval.agent import configure as configure_retrieval
from xnai.agents.retrieval.passages import Hit
from xnai.agents.retrieval.requests import SearchRequest
from xnai.agents.testing import running
from xnai.bus import Bus
from xnai.protocol import TaskRejected


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with two documents, and one thing that is none."""
    configure_inference({"threads": 1}, tmp_path / ".xnai")
    configure_retrieval({}, tmp_path / ".xnai")
    folder = tmp_path / "library"
    (folder / "animals").mkdir(parents=True)
    (folder / "animals" / "cats.md").write_text("# Cats\n\nCats sleep.\n\n## Food\n\nCats eat fish.\n")
    (folder / "planets.html").write_text("<h1>Planets</h1><p>Jupiter is the largest.</p><nav>Home</nav>")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@asynccontextmanager
async def stack() -> AsyncIterator[Bus]:
    with anyio.fail_after(60):
        async with running(inference, retrieval, curation) as bus:
            yield bus


async def ingest(bus: Bus, *paths: Path | str) -> list[Progress]:
    request = IngestRequest(paths=tuple(map(str, paths)))
    return [progress async for progress in bus.stream("curation.ingest", request, Progress)]


async def everything(bus: Bus) -> list[Hit]:
    """All that is stored, in a stable order."""
    hits = await bus.call("retrieval.search", SearchRequest(query="anything", limit=100), list[Hit])
    return sorted(hits, key=lambda hit: (hit.passage.source, hit.passage.start))


def texts(hits: list[Hit]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for hit in hits:
        found.setdefault(hit.passage.source, []).append(hit.passage.text)
    return found


# Taking in


async def test_what_becomes_of_each_document_is_said_and_summed_up(library: Path) -> None:
    async with stack() as bus:
        *steps, last = await ingest(bus, library)
    assert [(step.state, step.source, step.done, step.total) for step in steps] == [
        ("skipped", "library/picture.png", 0, 2),
        ("stored", "library/animals/cats.md", 1, 2),
        ("stored", "library/planets.html", 2, 2),
    ]
    assert steps[0].reason == ".png is not Markdown, HTML, reStructuredText or text"
    assert (last.state, last.passages, last.counts) == ("finished", 3, {"skipped": 1, "stored": 2})


async def test_every_passage_is_verbatim_in_its_source(library: Path) -> None:
    asked = [str(library), "pydoc:if", "pydoc:in"]
    async with stack() as bus:
        await ingest(bus, *asked)
        hits = await everything(bus)
    read = {item.source: item.text for item in read_sources(asked) if isinstance(item, Document)}
    assert {hit.passage.source for hit in hits} == read.keys()
    for hit in hits:
        passage = hit.passage
        assert read[passage.source][passage.start : passage.end] == passage.text


async def test_taking_in_the_same_again_changes_nothing(library: Path) -> None:
    async with stack() as bus:
        await ingest(bus, library)
        before = await everything(bus)
        *_, last = await ingest(bus, library)
        assert (last.passages, last.counts) == (0, {"skipped": 1, "unchanged": 2})
        assert await everything(bus) == before


async def test_a_changed_document_replaces_what_it_said_before(library: Path) -> None:
    cats = library / "animals" / "cats.md"
    async with stack() as bus:
        await ingest(bus, library)
        cats.write_text(cats.read_text().replace("Cats eat fish.", "Cats eat birds."))
        *_, last = await ingest(bus, library)
        assert last.counts == {"skipped": 1, "unchanged": 1, "stored": 1}
        said = " ".join(texts(await everything(bus))["library/animals/cats.md"])
    assert "birds" in said
    assert "fish" not in said


async def test_a_document_that_is_no_longer_there_is_forgotten_and_others_are_not(library: Path) -> None:
    (elsewhere := library.with_name("elsewhere.md")).write_text("Elsewhere.")
    async with stack() as bus:
        await ingest(bus, library, elsewhere)
        (library / "planets.html").unlink()
        *_, told, _ = await ingest(bus, library)
        assert (told.state, told.source) == ("forgotten", "library/planets.html")
        assert texts(await everything(bus)).keys() == {"library/animals/cats.md", "elsewhere.md"}


async def test_a_document_that_was_moved_is_found_at_its_new_place(library: Path) -> None:
    async with stack() as bus:
        await ingest(bus, library)
        (library / "planets.html").rename(library / "worlds.html")
        await ingest(bus, library)
        assert texts(await everything(bus)).keys() == {"library/animals/cats.md", "library/worlds.html"}


async def test_a_document_that_says_the_same_as_another_is_not_stored_twice(library: Path) -> None:
    (library / "copy.html").write_text((library / "planets.html").read_text())
    async with stack() as bus:
        steps = await ingest(bus, library)
        (copy,) = [step for step in steps if step.state == "duplicate"]
        assert (copy.source, copy.reason) == ("library/planets.html", "says the same as library/copy.html")
        *_, again = await ingest(bus, library)
        assert again.passages == 0
        assert texts(await everything(bus)).keys() == {"library/animals/cats.md", "library/copy.html"}


async def test_a_long_document_is_stored_whole_in_several_steps(tmp_path: Path, library: Path) -> None:
    long = tmp_path / "long.md"
    long.write_text("".join(f"# Part {number}\n\nThis is said in part {number}.\n\n" for number in range(40)))
    async with stack() as bus:
        *_, last = await ingest(bus, long)
        assert (last.passages, last.counts) == (40, {"stored": 1})
        assert len(texts(await everything(bus))["long.md"]) == 40


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("no/such/folder", "no file or folder 'no/such/folder'"), ("pydoc:iff", "did you mean pydoc:if?")],
)
async def test_what_does_not_exist_is_refused_by_name(library: Path, missing: str, reason: str) -> None:
    async with stack() as bus:
        with pytest.raises(TaskRejected, match=re.escape(reason)):
            await ingest(bus, library, missing)
        assert await everything(bus) == []


# Deciding


def decide(
    documents: dict[str, str],
    *,
    stored: Collection[str] = (),
    unchanged: Collection[str] = (),
    holders: dict[str, str] | None = None,
    skipped: Collection[Skipped] = (),
) -> Plan:
    found = {source: Fingerprint(f"bytes of {source}", says) for source, says in documents.items()}
    stock = Stock(sources=stored, unchanged=unchanged, holders=holders or {})
    return plan(found, skipped, stock)


def test_of_new_documents_that_say_the_same_the_first_is_stored() -> None:
    decided = decide({"a": "hello", "b": "hello", "c": "other"})
    assert (decided.fresh, decided.repeated) == (("a", "c"), {"b": "a"})


def test_a_document_that_says_the_same_as_a_stored_one_is_not_stored() -> None:
    assert decide({"a": "hello"}, holders={"hello": "elsewhere"}).repeated == {"a": "elsewhere"}
    decided = decide({"a": "hello", "b": "hello"}, stored=["b"], unchanged=["b"])
    assert (decided.fresh, decided.unchanged, decided.repeated) == ((), ("b",), {"a": "b"})


def test_a_document_that_is_about_to_change_or_to_go_holds_nothing() -> None:
    decided = decide({"a": "hello", "b": "changed"}, stored=["b"], holders={"hello": "b"})
    assert (decided.fresh, decided.repeated) == (("a", "b"), {})
    decided = decide({"a": "hello"}, stored=["gone"], holders={"hello": "gone"})
    assert (decided.fresh, decided.gone) == (("a",), ("gone",))


def test_a_document_whose_form_alone_has_changed_is_stored_anew() -> None:
    decided = decide({"a": "hello"}, stored=["a"], holders={"hello": "a"})
    assert (decided.fresh, decided.repeated) == (("a",), {})


def test_a_document_that_became_a_repetition_is_outdated() -> None:
    decided = decide({"a": "hello", "b": "hello"}, stored=["a", "b"], unchanged=["a"])
    assert (decided.repeated, decided.outdated, decided.gone) == ({"b": "a"}, ("b",), ())


def test_what_cannot_be_read_now_is_kept() -> None:
    skipped = [Skipped(source="library/closed", code="unreadable", reason="")]
    stored = ["library/closed/a", "library/closed", "library/closed-for-ever"]
    assert decide({}, stored=stored, skipped=skipped).gone == ("library/closed-for-ever",)
