"""What an ingestion has to do, from what there is and what is stored. Nothing here reads or asks."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from xnai.agents.curation.documents import Skipped
from xnai.agents.curation.sources import SCHEME, TOPICS


class Fingerprint(msgspec.Struct, frozen=True):
    """What tells whether a document has to be stored: the SHA-256 of its bytes, the digest of its text."""

    sha256: str
    digest: str


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """What the store holds of the documents of a request.

    Attributes:
        sources: all documents stored under the names asked for.
        unchanged: those stored whole and as they are.
        holders: for the digest of a text the source that is stored with it, of whatever name.
    """

    sources: Collection[str]
    unchanged: Collection[str]
    holders: Mapping[str, str]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of each document, in their order.

    Attributes:
        fresh: to be embedded and stored.
        unchanged: to be left alone.
        repeated: for a document that says the same as another one, that one.
        gone: stored, and no longer there.
        outdated: stored in an earlier version, and now a repetition of another document.
    """

    fresh: tuple[str, ...]
    unchanged: tuple[str, ...]
    repeated: dict[str, str]
    gone: tuple[str, ...]
    outdated: tuple[str, ...]


def name_of(asked: str) -> str:
    """The name at or below which `read_sources` names what it finds for this."""
    if asked == TOPICS:
        return SCHEME
    if asked.startswith(SCHEME):
        return asked
    return Path(os.path.abspath(os.path.expanduser(asked))).name


def plan(documents: Mapping[str, Fingerprint], skipped: Collection[Skipped], stock: Stock) -> Plan:
    """Decide. Of documents that say the same, one that is stored stays, otherwise the first.

    A document that is stored and cannot be read now is kept: it may come back.
    """
    unreadable = [item.source for item in skipped if item.code == "unreadable"]
    gone = sorted(
        source for source in stock.sources if source not in documents and not _below(source, unreadable)
    )
    first = {documents[source].digest: source for source in documents if source in stock.unchanged}
    fresh, repeated = [], {}
    for source, found in documents.items():
        if source in stock.unchanged:
            continue
        holder = stock.holders.get(found.digest)
        # One of these documents will be stored anew, and may say something else by now.
        if holder is not None and holder not in documents and holder not in gone:
            first.setdefault(found.digest, holder)
        original = first.setdefault(found.digest, source)
        if original == source:
            fresh.append(source)
        else:
            repeated[source] = original
    return Plan(
        fresh=tuple(fresh),
        unchanged=tuple(source for source in documents if source in stock.unchanged),
        repeated=repeated,
        gone=tuple(gone),
        outdated=tuple(source for source in repeated if source in stock.sources),
    )


def _below(source: str, names: Collection[str]) -> bool:
    return any(source == name or source.startswith(f"{name}/") for name in names)
