"""Opening Qdrant: a folder of our own, or a server by URL. Nothing else knows which of the two it is."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TextIO

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from xnai.agents.retrieval.errors import StoreDamaged, StoreError, StoreLocked, StoreMismatch

COLLECTION = "passages"
INDEXED = ("source", "under", "document_digest")

_SERVER_TIMEOUT_S = 30


@contextmanager
def open_client(
    location: str, dimensions: int, *, model: str | None, api_key: str | None
) -> Iterator[QdrantClient]:
    """A client whose collection exists and fits.

    Raises:
        StoreLocked: another process has the folder open.
        StoreMismatch: it holds vectors of another length or model.
        StoreDamaged: what it holds cannot be read.
        StoreError: it cannot be reached or written.
    """
    is_server = _is_server(location)
    with _server(location, api_key) if is_server else _folder(Path(location)) as client:
        with translated(location):
            _fit(client, dimensions, model, location)
            if is_server:
                for field in INDEXED:
                    client.create_payload_index(COLLECTION, field, models.PayloadSchemaType.KEYWORD)
            else:
                _write_ahead(Path(location))
        yield client


@contextmanager
def translated(location: str) -> Iterator[None]:
    """What the store's own libraries raise, in the words of this project."""
    try:
        yield
    except UnexpectedResponse as error:
        reason = f"{error.status_code} {error.reason_phrase}".strip()
        raise StoreError(f"the passage store at {location} refused a request: {reason}") from error
    except ApiException as error:
        raise StoreError(f"the passage store at {location} does not answer: {error}") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"the passage store at {location} cannot be used: {error}") from error
        raise StoreDamaged(_damaged(location, error)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"the passage store at {location} cannot be used: {reason}") from error
    except ValueError as error:
        if isinstance(error, StoreError) or not _is_server(location):
            raise
        raise StoreError(f"what answers at {location} is no Qdrant server: {error}") from error


def _is_server(location: str) -> bool:
    return location.startswith(("http://", "https://"))


@contextmanager
def _server(url: str, api_key: str | None) -> Iterator[QdrantClient]:
    _silence()
    with translated(url):
        # The check of versions would run in a thread of its own and warn on stderr.
        client = QdrantClient(url=url, api_key=api_key, timeout=_SERVER_TIMEOUT_S, check_compatibility=False)
    with closing(client):
        yield client


@contextmanager
def _folder(folder: Path) -> Iterator[QdrantClient]:
    _silence()
    with ExitStack() as stack:
        with translated(str(folder)):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Ours first: Qdrant locks only after it has read everything, so what it read may be out of date.
            ours = stack.enter_context(_locked(folder / ".xnai.lock"))
            ours.truncate(0)
            ours.write(str(os.getpid()))
            ours.flush()
            # Then a look at Qdrant's own, because it leaves its files open when it finds the folder locked.
            with _locked(folder / ".lock"):
                pass
        yield stack.enter_context(closing(_read_folder(folder)))


def _read_folder(folder: Path) -> QdrantClient:
    try:
        with translated(str(folder)):
            # Used by one thread at a time, though not always the same one.
            return QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    except StoreError:
        raise
    except Exception as error:
        # Qdrant unpickles what the folder holds, and of damaged bytes that may raise anything.
        raise StoreDamaged(_damaged(str(folder), error)) from error


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """A file locked for as long as it is open, and no longer than this process lives."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(20).strip()
            who = f"process {owner}" if owner.isdecimal() else "another process"
            raise StoreLocked(f"{who} has the passage store at {path.parent} open; only one may") from error
        yield file


def _fit(client: QdrantClient, dimensions: int, model: str | None, location: str) -> None:
    if not client.collection_exists(COLLECTION):
        vectors = models.VectorParams(size=dimensions, distance=models.Distance.COSINE)
        metadata = {"model": model} if model else None
        client.create_collection(COLLECTION, vectors_config=vectors, metadata=metadata)
        return
    config = client.get_collection(COLLECTION).config
    vectors_found = config.params.vectors
    size = vectors_found.size if isinstance(vectors_found, models.VectorParams) else None
    if size != dimensions:
        found = f"vectors of {size} numbers, not of {dimensions}"
        raise StoreMismatch(f"the passage store at {location} holds {found}")
    made_by = (config.metadata or {}).get("model")
    if model and made_by and model != made_by:
        raise StoreMismatch(f"the passage store at {location} holds vectors of {made_by}, not of {model}")


def _write_ahead(folder: Path) -> None:
    """Qdrant commits each point by itself: with SQLite's write-ahead log that costs one flush, not three."""
    with closing(sqlite3.connect(folder / "collection" / COLLECTION / "storage.sqlite")) as database:
        database.execute("PRAGMA journal_mode=WAL")


def _silence() -> None:
    """Keep Qdrant's advice to programmers from people who only use the store."""
    for message in ("Local mode is not recommended", "Removed .* outdated copies", "Api key is used with"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)


def _damaged(location: str, error: Exception) -> str:
    cause = f"{type(error).__name__}: {error}"[:200]
    return f"the passage store at {location} is damaged ({cause}); move the folder away and ingest again"
