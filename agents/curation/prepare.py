"""From a document to the passages that are stored, and the words under which each is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from xnai.agents.curation.chunk import LIMIT, RECIPE, chunks
from xnai.agents.curation.documents import Document
from xnai.agents.retrieval.passages import Passage, digest


def passages(document: Document) -> list[Passage]:
    """Cut a document into passages, in order. A pure function: an unchanged document gives the same ids."""
    cut = chunks(document)
    whole = digest(document.text)
    seen: Counter[str] = Counter()
    found: list[Passage] = []
    for chunk in cut:
        passage = Passage(
            source=document.source,
            title=document.title,
            heading=chunk.heading,
            start=chunk.start,
            end=chunk.end,
            text=chunk.text,
            sha256=chunk.sha256,
            repeat=seen[chunk.sha256],
            parts=len(cut),
            document_sha256=document.sha256,
            document_digest=whole,
            recipe=RECIPE,
        )
        seen[chunk.sha256] += 1
        found.append(passage)
    return found


def embedding_text(passage: Passage) -> str:
    """What to embed for a passage: the headings above it, or the title of its document, and its text."""
    context = (passage.heading or passage.title)[: LIMIT // 2]
    return f"{context}\n\n{passage.text}" if context else passage.text


def without_duplicates(
    documents: Sequence[Document], held: Mapping[str, str]
) -> tuple[list[Document], dict[str, str]]:
    """Separate documents that say something new from those that repeat another one word for word.

    Args:
        documents: in order; of several that say the same the first stays.
        held: which source the store holds for a digest (`Store.holders`). A document is no duplicate of
            itself, nor of one among these that says something else by now.

    Returns:
        The documents to ingest, and for the source of each other one the source that it repeats.
    """
    digests = {document.source: digest(document.text) for document in documents}
    first: dict[str, str] = {}
    fresh: list[Document] = []
    repeated: dict[str, str] = {}
    for document in documents:
        key = digests[document.source]
        holder = held.get(key, document.source)
        is_current = digests.get(holder, key) == key
        original = first.setdefault(key, holder if is_current else document.source)
        if original == document.source:
            fresh.append(document)
        else:
            repeated[document.source] = original
    return fresh, repeated
