"""What is asked of the retrieval agent, and what it answers besides the types in `passages.py`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from xnai.agents.retrieval.passages import Embedded

MOST_HITS = 100


class StoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request of `retrieval.store`. Asking twice changes nothing.

    Attributes:
        model: which model made the vectors; empty where there are none.
        passages: to be stored.
        whole: for each document that is complete with these, the ids of all its passages: whatever else is
            stored of it is forgotten, so no ids at all forget the document.
    """

    model: str = ""
    passages: tuple[Embedded, ...] = ()
    whole: dict[str, tuple[str, ...]] = {}


class KnownRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request of `retrieval.known`: the SHA-256 of the bytes of documents by source, and the recipe."""

    documents: dict[str, str]
    recipe: int


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request of `retrieval.search`.

    Attributes:
        query: a question, or words that describe what is looked for.
        limit: at most so many hits.
        under: only sources with this name or below it: `docs`, `docs/guide`, `pydoc:`.
    """

    query: Annotated[str, msgspec.Meta(min_length=1)]
    limit: Annotated[int, msgspec.Meta(ge=1, le=MOST_HITS)] = 5
    under: str | None = None
