"""Putting documents into a passage store the way curation does, with vectors that need no model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from xnai.agents.curation.documents import Document, document
from xnai.agents.curation.prepare import passages
from xnai.agents.retrieval.passages import Embedded, Passage, Stored
from xnai.agents.retrieval.store import Store

DIMENSIONS = 16

GUIDE = "# Guide\n\nintro\n\n## Install\n\nhow\n\n## Use\n\nthus\n"


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
