"""What is asked of the curation agent, and what it says while it works."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

State = Literal["stored", "unchanged", "duplicate", "skipped", "failed", "forgotten", "finished"]


class IngestRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request of `curation.ingest`.

    Attributes:
        paths: of files and folders, as the agent's machine knows them, best absolute; `pydoc_data.topics` for
            the articles of Python's manual, `pydoc:if` for one of them.
    """

    paths: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One step of an ingestion. The last one is `finished`, and sums up.

    Attributes:
        state: what became of the document: `stored` (new or changed), `unchanged`, a `duplicate` of another
            one, `skipped` (no document), `failed` (could not be read), `forgotten` (no longer there).
        source: the name of the document.
        reason: why it is not stored; empty where that goes without saying.
        done, total: documents dealt with by now, and altogether.
        passages: that were stored by now, new or changed.
        counts: how often each state has come by now.
    """

    state: State
    source: str = ""
    reason: str = ""
    done: int
    total: int
    passages: int
    counts: dict[State, int]
