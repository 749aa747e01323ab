"""States of evicted sequences, in memory and in real files: whatever is wrong with one is a miss."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xnai.agents.inference.engine.radix import Tokens
from xnai.agents.inference.engine.saved import MAGIC, SavedStates

MEGABYTE = 1 << 20


def text(seed: int, length: int = 100) -> Tokens:
    return np.random.default_rng(seed).integers(0, 32_000, length).astype(np.int32)


def on_disk(folder: Path, *, identity: str = "model 1", disk: int = 64 * MEGABYTE) -> SavedStates:
    return SavedStates(identity, memory=0, folder=folder, disk=disk)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def test_a_state_comes_back_as_it_was() -> None:
    saved = SavedStates("model 1", memory=MEGABYTE)
    key, lost = saved.put(text(1), b"state")
    assert (saved.get(key), lost) == (b"state", ())
    saved.drop(key)
    assert saved.get(key) is None
    assert saved.in_memory == 0


def test_memory_is_bounded_and_the_least_recently_used_goes() -> None:
    saved = SavedStates("model 1", memory=300)
    first, second, third = (saved.put(text(seed), bytes(100))[0] for seed in (1, 2, 3))
    saved.get(first)
    fourth, lost = saved.put(text(4), bytes(100))
    assert lost == (second,)
    assert saved.in_memory == 300
    assert [saved.get(key) is not None for key in (first, second, third, fourth)] == [True, False, True, True]
    assert saved.put(text(5), bytes(301)) == ("", ())


def test_saving_the_same_tokens_again_replaces_the_state() -> None:
    saved = SavedStates("model 1", memory=300)
    for state in (b"one", b"two"):
        key, _ = saved.put(text(1), state)
    assert saved.get(key) == b"two"
    assert saved.in_memory == 3


def test_what_memory_has_no_room_for_goes_to_the_folder(tmp_path: Path) -> None:
    saved = SavedStates("model 1", memory=150, folder=tmp_path, disk=MEGABYTE)
    keys = [saved.put(text(seed), bytes([seed]) * 100)[0] for seed in (1, 2, 3)]
    assert [saved.get(key) for key in keys] == [bytes([seed]) * 100 for seed in (1, 2, 3)]
    assert len(files(tmp_path)) == 2


def test_the_next_engine_finds_what_was_saved(tmp_path: Path) -> None:
    first = SavedStates("model 1", memory=MEGABYTE, folder=tmp_path / "new", disk=MEGABYTE)
    key, _ = first.put(text(1), b"state")
    first.write_all()
    second = on_disk(tmp_path / "new")
    ((found, tokens),) = second.found()
    assert found == key
    assert tokens.tolist() == text(1).tolist()
    assert second.get(found) == b"state"


def test_nobody_else_may_read_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    on_disk(folder).put(text(1), b"state")
    assert [path.stat().st_mode & 0o077 for path in (folder, *files(folder))] == [0, 0]


def test_a_state_of_another_model_is_left_alone_and_not_used(tmp_path: Path) -> None:
    key, _ = on_disk(tmp_path, identity="model 2").put(text(1), b"state")
    saved = on_disk(tmp_path)
    assert saved.found() == []
    assert len(files(tmp_path)) == 1
    assert on_disk(tmp_path, identity="model 2").get(key) == b"state"


def test_a_file_under_the_name_of_another_is_removed(tmp_path: Path) -> None:
    saved = on_disk(tmp_path)
    for seed in (1, 2):
        saved.put(text(seed), b"state")
    one, other = files(tmp_path)
    one.replace(other)
    assert saved.found() == []
    assert files(tmp_path) == []


def test_a_truncated_file_is_removed_at_the_start(tmp_path: Path) -> None:
    saved = on_disk(tmp_path)
    key, _ = saved.put(text(1), bytes(1000))
    (path,) = files(tmp_path)
    for length in (path.stat().st_size - 1, 100, 20, 0):
        saved.put(text(1), bytes(1000))
        os.truncate(path, length)
        assert saved.found() == []
        assert not path.exists()
    assert saved.get(key) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), byte=st.integers(1, 255))
def test_a_damaged_file_is_a_miss(tmp_path: Path, place: int, byte: int) -> None:
    saved = on_disk(tmp_path)
    key, _ = saved.put(text(1), bytes(200))
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= byte
    path.write_bytes(data)
    assert all(found == key for found, _ in on_disk(tmp_path).found())
    assert saved.get(key) is None
    assert files(tmp_path) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(junk=st.binary(max_size=200), ours=st.booleans())
def test_any_bytes_in_a_file_are_a_miss(tmp_path: Path, junk: bytes, ours: bool) -> None:
    saved = on_disk(tmp_path)
    key, _ = saved.put(text(1), b"state")
    (path,) = files(tmp_path)
    path.write_bytes(MAGIC + junk if ours else junk)
    assert saved.found() == []
    path.write_bytes(MAGIC + junk if ours else junk)
    assert saved.get(key) is None


def test_what_a_dead_engine_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "0123-4567.99.part").write_bytes(b"half")
    assert on_disk(tmp_path).found() == []
    assert files(tmp_path) == []


def test_the_folder_is_bounded_over_all_models(tmp_path: Path) -> None:
    room = 20_000
    for seed in range(6):
        saved = on_disk(tmp_path, identity=f"model {seed % 2}", disk=room)
        key, _ = saved.put(text(seed), bytes(6000))
        os.utime(tmp_path / f"{key}.state", ns=(seed, seed))
        assert saved.get(key) is not None
        os.utime(tmp_path / f"{key}.state", ns=(seed, seed))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= room
    assert len(files(tmp_path)) == 3
    assert saved.put(text(9), bytes(room)) == ("", ())
    on_disk(tmp_path, disk=7000).found()
    assert [path.stat().st_mtime_ns for path in files(tmp_path)] == [5]


def test_a_full_disk_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = on_disk(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, hard))  # a longer file fails as on a full disk
    try:
        assert saved.put(text(1), bytes(2 * MEGABYTE)) == ("", ())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == []
    assert [record.message for record in caplog.records] == ["a state was not saved"]
    assert saved.put(text(1), bytes(2 * MEGABYTE))[0]


def test_a_folder_that_cannot_be_made_is_a_miss(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    saved = on_disk(tmp_path / "file" / "states")
    assert saved.found() == []
    assert saved.put(text(1), b"state") == ("", ())
    assert saved.get("0123-4567") is None


def test_a_file_that_somebody_removed_is_a_miss(tmp_path: Path) -> None:
    saved = on_disk(tmp_path)
    key, _ = saved.put(text(1), b"state")
    files(tmp_path)[0].unlink()
    assert saved.get(key) is None
    saved.drop(key)
