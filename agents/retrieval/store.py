"""The passage store: what curation found, kept under its vectors, with the source of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from qdrant_client import QdrantClient, models

from xnai.agents.retrieval.errors import StoreDamaged
from xnai.agents.retrieval.opening import COLLECTION, open_client, translated
from xnai.agents.retrieval.passages import Embedded, Hit, Passage, Stored, digest
from xnai.protocol import InvalidArgument

_PAGE = 10_000  # records of a scroll: embedded Qdrant sorts all of them for each page
_BATCH = 256  # points of one request to a server

T = TypeVar("T")


class _Record(msgspec.Struct, frozen=True):
    """What is read of a stored point to tell whether its document is complete."""

    source: str
    parts: int
    recipe: int
    document_sha256: str
    document_digest: str


@contextmanager
def open_store(
    location: str, dimensions: int, *, model: str | None = None, api_key: str | None = None
) -> Iterator[Store]:
    """Open the store, and make it if it is new.

    Args:
        location: a folder, which one process at a time may open, or the URL of a Qdrant server. Only a URL
            makes it use the network.
        dimensions: the length of every vector.
        model: the model whose vectors these are, remembered when the store is made and compared afterwards.
        api_key: for a server that wants one.

    Raises:
        StoreLocked: another process has the folder open.
        StoreMismatch: it was made for vectors of another length or model.
        StoreDamaged: what the folder holds cannot be read.
        StoreError: the folder cannot be written, or the server does not answer.
    """
    if dimensions < 1:
        raise InvalidArgument("a vector has at least one dimension")
    with open_client(location, dimensions, model=model, api_key=api_key) as client:
        yield Store(client, location, dimensions)


class Store:
    """Passages by vector. Every call blocks; make one at a time, from whichever thread.

    What is put is on disk when `put` returns. Every method raises `StoreError` when the store cannot be used.
    """

    def __init__(self, client: QdrantClient, location: str, dimensions: int) -> None:
        self._client = client
        self._location = location
        self._dimensions = dimensions

    def put(self, passages: Sequence[Embedded]) -> Stored:
        """Store passages. Those stored already are left alone, so putting twice changes nothing.

        The vector of a stored passage is not compared: the same text has the same one.

        Raises:
            InvalidArgument: a vector is of another length, not finite, or zero. Nothing was stored.
        """
        for item in passages:
            self._check(item.vector)
        new = changed = 0
        with translated(self._location):
            for first in range(0, len(passages), _BATCH):
                batch = {item.passage.id: item for item in passages[first : first + _BATCH]}
                stored = {str(found.id): found.payload for found in self._retrieve(list(batch))}
                points = [
                    _point(item) for key, item in batch.items() if not _same(item.passage, stored.get(key))
                ]
                if points:
                    self._client.upsert(COLLECTION, points, wait=True)
                changed += sum(point.id in stored for point in points)
                new += sum(point.id not in stored for point in points)
        return Stored(new=new, changed=changed, unchanged=len(passages) - new - changed)

    def forget(self, source: str, *, keep: Collection[str] = ()) -> int:
        """Remove the passages of a source except those with these ids. Returns how many were removed."""
        kept = models.HasIdCondition(has_id=list(keep))
        stale = models.Filter(must=[_is("source", source)], must_not=[kept] if keep else None)
        with translated(self._location):
            count = self._client.count(COLLECTION, count_filter=stale, exact=True).count
            if count:
                self._client.delete(COLLECTION, models.FilterSelector(filter=stale), wait=True)
        return count

    def known(self, documents: Mapping[str, str], *, recipe: int) -> set[str]:
        """Which documents are stored whole, as they are, and by this recipe: those need no embedding.

        Args:
            documents: the SHA-256 of the original bytes by source.
            recipe: as in `Passage`.
        """
        stored = self._whole("source", documents)
        return {
            source
            for source, record in stored.items()
            if record.document_sha256 == documents[source] and record.recipe == recipe
        }

    def holders(self, digests: Collection[str]) -> dict[str, str]:
        """For each digest of a whole document the source that is stored with it, if one is: see `digest`."""
        stored = self._whole("document_digest", digests)
        return {record.document_digest: source for source, record in sorted(stored.items(), reverse=True)}

    def sources(self, under: str) -> set[str]:
        """The sources with this name or below it of which anything is stored, whole or not."""
        return {record.source for record in self._records("under", [under])}

    def search(self, vector: Sequence[float], limit: int = 5, *, under: str | None = None) -> list[Hit]:
        """The passages nearest to a vector, best first. Passages that say the same are one hit.

        Args:
            vector: of the question, by the model that made the stored ones.
            limit: at most so many hits, 1 to 1000.
            under: only sources with this name or below it: `docs`, `docs/guide`, `pydoc:`.

        Raises:
            InvalidArgument: the vector or the limit cannot be used.
        """
        self._check(vector)
        if not 1 <= limit <= 1000:
            raise InvalidArgument("the limit of a search is between 1 and 1000")
        only = models.Filter(must=[_is("under", under)]) if under is not None else None
        fetch = 2 * limit
        while True:
            with translated(self._location):
                answer = self._client.query_points(COLLECTION, list(vector), query_filter=only, limit=fetch)
            hits = _merge([self._hit(point) for point in answer.points])
            if len(hits) >= limit or len(answer.points) < fetch:
                return hits[:limit]
            fetch *= 2

    def count(self, under: str | None = None) -> int:
        """How many passages are stored, of all sources or of those under this name."""
        only = models.Filter(must=[_is("under", under)]) if under is not None else None
        with translated(self._location):
            return self._client.count(COLLECTION, count_filter=only, exact=True).count

    def _check(self, vector: Sequence[float]) -> None:
        if len(vector) != self._dimensions:
            raise InvalidArgument(f"a vector of {len(vector)} numbers does not fit one of {self._dimensions}")
        if not all(map(math.isfinite, vector)) or not any(vector):
            raise InvalidArgument("a vector has finite numbers, not all of them zero")

    def _retrieve(self, ids: list[str]) -> list[models.Record]:
        return self._client.retrieve(COLLECTION, ids, with_payload=True)

    def _whole(self, field: str, values: Collection[str]) -> dict[str, _Record]:
        """Sources of which all passages are stored and none of another version, with one record of each."""
        of: dict[str, list[_Record]] = {}
        for record in self._records(field, list(values)):
            of.setdefault(record.source, []).append(record)
        return {
            source: records[0]
            for source, records in of.items()
            if len(records) == records[0].parts and all(record == records[0] for record in records)
        }

    def _records(self, field: str, values: list[str]) -> Iterator[_Record]:
        wanted = models.Filter(must=[models.FieldCondition(key=field, match=models.MatchAny(any=values))])
        offset = None
        while values:
            with translated(self._location):
                points, offset = self._client.scroll(
                    COLLECTION,
                    scroll_filter=wanted,
                    limit=_PAGE,
                    offset=offset,
                    with_payload=list(_Record.__struct_fields__),
                )
            for point in points:
                yield self._read(point.payload, _Record)
            if offset is None:
                return

    def _hit(self, point: models.ScoredPoint) -> Hit:
        payload = point.payload or {}
        ingested = self._read(payload.get("ingested"), datetime)
        return Hit(passage=self._read(payload, Passage), score=point.score, ingested=ingested)

    def _read(self, payload: object, kind: type[T]) -> T:
        try:
            return msgspec.convert(payload, kind)
        except msgspec.ValidationError as error:
            message = f"the passage store at {self._location} holds a point that is no passage: {error}"
            raise StoreDamaged(message) from error


def _point(item: Embedded) -> models.PointStruct:
    passage = item.passage
    payload = _payload(passage)
    payload["under"] = _under(passage.source)
    payload["ingested"] = datetime.now(UTC).isoformat(timespec="milliseconds")
    return models.PointStruct(id=passage.id, vector=list(item.vector), payload=payload)


def _payload(passage: Passage) -> dict[str, Any]:
    payload: dict[str, Any] = msgspec.to_builtins(passage)
    return payload


def _same(passage: Passage, stored: Mapping[str, Any] | None) -> bool:
    return stored is not None and all(stored.get(key) == value for key, value in _payload(passage).items())


def _under(source: str) -> list[str]:
    """Every name under which a source is found: Qdrant matches whole keywords, not the beginnings of them."""
    scheme, colon, _ = source.partition(":")
    names = [f"{scheme}:"] if colon and "/" not in scheme else []
    folders = [source[:at] for at, character in enumerate(source) if character == "/" and at]
    return [*names, *folders, source]


def _is(field: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))


def _merge(hits: list[Hit]) -> list[Hit]:
    """One hit for those that say the same, in a stable order."""
    best: dict[str, list[Hit]] = {}
    for hit in sorted(hits, key=lambda hit: (-hit.score, hit.passage.source, hit.passage.start)):
        best.setdefault(digest(hit.passage.text), []).append(hit)
    return [
        msgspec.structs.replace(first, also=tuple(dict.fromkeys(hit.passage.source for hit in others)))
        for first, *others in best.values()
    ]
