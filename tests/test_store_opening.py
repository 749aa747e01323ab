"""Opening a passage store: one process at a time, the right vectors, a sound folder, no network unasked."""

from __future__ import annotations

import gc
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
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from ingesting import DIMENSIONS, GUIDE, ingest
from qdrant_client.local.local_collection import LocalCollection
from qdrant_client.local.qdrant_local import QdrantLocal

from xnai.agents.retrieval.errors import StoreDamaged, StoreError, StoreLocked, StoreMismatch
from xnai.agents.retrieval.store import open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "passages"


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
