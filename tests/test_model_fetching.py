"""Fetching a model from a fake hub: whole and as promised, or not there, whatever breaks in between."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_models import write_model
from hub import FakeHub, open_hub

from xnai.agents.inference.errors import FetchFailed, ModelInvalid
from xnai.deploy.models.errors import (
    ChecksumWrong,
    DiskFull,
    HubRefused,
    HubUnreachable,
    ModelSplit,
    ModelUnknown,
)
from xnai.deploy.models.fetching import fetch
from xnai.deploy.models.hub import Hub
from xnai.deploy.models.naming import HubFile, quantization, read_name
from xnai.protocol.errors import InvalidArgument

REPOSITORY, FILE = "some/model-GGUF", "model-Q8_0.gguf"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a real GGUF."""
    return write_model(tmp_path_factory.mktemp("models") / "model.gguf").read_bytes()


@pytest.fixture
def fake(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with open_hub() as hub:
        hub.files[REPOSITORY] = {"README.md": b"# A model", FILE: content}
        yield hub


def find(fake: FakeHub, name: str, token: str | None = None) -> HubFile:
    with Hub(fake.address, token) as hub:
        return hub.find(read_name(name))


def get(fake: FakeHub, target: Path, *, name: str = REPOSITORY, token: str | None = None) -> list[int]:
    """Find and fetch a file; how many bytes there were, each time that somebody said it."""
    said: list[int] = []
    with Hub(fake.address, token) as hub:
        fetch(hub, hub.find(read_name(name)), target, lambda have, _: said.append(have))
    return said


def downloads(fake: FakeHub) -> list[str | None]:
    """The range that each download asked for."""
    return [headers.get("Range") for headers in fake.sent("/store/")]


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


# Which file is meant


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("mistral-7b-instruct-v0.2.Q4_K_M.gguf", "Q4_K_M"),
        ("Qwen3-4B-UD-Q2_K_XL.gguf", "UD-Q2_K_XL"),
        ("model-f16.gguf", "F16"),
        ("a/IQ4_XS/model-IQ4_XS.gguf", "IQ4_XS"),
        ("qwen2-0_5b-instruct-q8_0.gguf", "Q8_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model.gguf", None),
    ],
)
def test_the_quantization_stands_in_the_name(name: str, stored: str | None) -> None:
    assert quantization(name) == stored


def test_a_file_is_found_by_its_quantization_or_its_name(fake: FakeHub, content: bytes) -> None:
    fake.files[REPOSITORY]["model-Q4_K_M.gguf"] = b"small"
    fake.files[REPOSITORY]["mmproj-model-Q8_0.gguf"] = b"for pictures"
    digest = hashlib.sha256(content).hexdigest()
    for which in ("Q8_0", "q8_0", FILE):
        found = find(fake, f"{REPOSITORY}:{which}")
        assert (found.name, found.size, found.sha256) == (FILE, len(content), digest)
    assert find(fake, REPOSITORY).name == "model-Q4_K_M.gguf"  # what most people want
    assert find(fake, f"{fake.address}/{REPOSITORY}/resolve/main/{FILE}").sha256 == digest


def test_a_long_list_of_files_is_read_to_its_end(fake: FakeHub) -> None:
    fake.page = 1
    assert find(fake, f"{REPOSITORY}:Q8_0").name == FILE


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (f"{REPOSITORY}:Q8_1", f"Did you mean {REPOSITORY}:Q8_0"),
        (f"{REPOSITORY}:IQ2_XS", "Known are Q8_0"),
        ("some/modle-GGUF", f"Did you mean {REPOSITORY}?"),
        ("nobody/nothing", "Mind its name"),
    ],
)
def test_what_is_not_there_is_said_with_what_may_have_been_meant(fake: FakeHub, name: str, hint: str) -> None:
    with pytest.raises(ModelUnknown) as refused:
        find(fake, name)
    assert hint in str(refused.value)


def test_of_several_files_none_is_guessed(fake: FakeHub) -> None:
    fake.files[REPOSITORY] = {"a-F16.gguf": b"", "b-F16.gguf": b""}
    with pytest.raises(ModelUnknown, match=r"several files.*a-F16\.gguf, b-F16\.gguf"):
        find(fake, REPOSITORY)


def test_a_model_in_several_files_is_refused_with_those_in_one(fake: FakeHub) -> None:
    fake.files[REPOSITORY] |= {f"model-F16-0000{n}-of-00002.gguf": b"" for n in (1, 2)}
    with pytest.raises(ModelSplit, match=r"F16 in 2 files.*Known are Q8_0"):
        find(fake, f"{REPOSITORY}:F16")


@pytest.mark.parametrize("name", ["mistral", "a/b/c", "../../etc", "", "ftp://a/b.gguf"])
def test_what_names_no_model_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="names no model"):
        read_name(name)


@pytest.mark.parametrize("path", ["..gguf", "a b\n.gguf", "\x1b[2J.gguf", "-rf.gguf"])
def test_a_name_that_could_do_harm_in_a_folder_is_refused(fake: FakeHub, path: str) -> None:
    fake.files[REPOSITORY] = {path: b""}
    with pytest.raises(ModelUnknown, match="no name of a GGUF"):
        find(fake, REPOSITORY)


# Fetching


def test_a_file_arrives_whole_and_nothing_beside_it(fake: FakeHub, content: bytes, tmp_path: Path) -> None:
    target = tmp_path / "here" / FILE
    assert get(fake, target)[-1] == len(content)
    assert target.read_bytes() == content
    assert leftovers(target) == []


def test_a_broken_connection_is_gone_on_with(fake: FakeHub, content: bytes, tmp_path: Path) -> None:
    fake.breaks = [10_000, 30_000]
    target = tmp_path / FILE
    get(fake, target)
    assert target.read_bytes() == content
    assert downloads(fake) == [None, "bytes=10000-", "bytes=40000-"]
    assert all("If-Range" in headers for headers in fake.sent("/store/")[1:])


def test_what_came_before_the_network_went_is_gone_on_with_by_the_next_call(
    fake: FakeHub, content: bytes, tmp_path: Path
) -> None:
    fake.breaks = [10_000, 0]
    target = tmp_path / FILE
    with pytest.raises(HubUnreachable, match=r"9\.77 KiB of it are kept"):
        get(fake, target)
    assert not target.exists()
    get(fake, target)
    assert target.read_bytes() == content
    assert downloads(fake)[-1] == "bytes=10000-"


def test_a_half_file_of_another_content_is_thrown_away(fake: FakeHub, content: bytes, tmp_path: Path) -> None:
    fake.breaks = [10_000, 0]
    target = tmp_path / FILE
    with pytest.raises(HubUnreachable):
        get(fake, target)
    newer = content[:-4] + b"1234"
    fake.files[REPOSITORY][FILE] = newer
    get(fake, target)
    assert target.read_bytes() == newer
    assert downloads(fake)[-1] is None


@pytest.mark.parametrize("change", [{"etag": "other"}, {"ranges": False}], ids=["other tag", "no ranges"])
def test_a_server_that_begins_anew_is_believed(
    fake: FakeHub, content: bytes, tmp_path: Path, change: dict[str, object]
) -> None:
    fake.breaks = [10_000, 0]
    target = tmp_path / FILE
    with pytest.raises(HubUnreachable):
        get(fake, target)
    for name, value in change.items():
        setattr(fake, name, value)
    fake.breaks = [20_000]
    get(fake, target)
    assert target.read_bytes() == content


def test_a_half_file_that_is_whole_needs_no_download(fake: FakeHub, content: bytes, tmp_path: Path) -> None:
    fake.breaks = [len(content) - 1, 0]
    target = tmp_path / FILE
    with pytest.raises(HubUnreachable):
        get(fake, target)
    part = target.with_name(f"{FILE}.part")
    part.write_bytes(content)
    before = len(downloads(fake))
    get(fake, target)
    assert target.read_bytes() == content
    assert len(downloads(fake)) == before


def test_a_wrong_checksum_throws_the_file_away(fake: FakeHub, tmp_path: Path) -> None:
    fake.lies[FILE] = "a" * 64
    target = tmp_path / FILE
    with pytest.raises(ChecksumWrong, match="a" * 64):
        get(fake, target)
    assert leftovers(target) == []
    assert not target.exists()


def test_a_half_file_that_was_damaged_here_is_noticed(fake: FakeHub, content: bytes, tmp_path: Path) -> None:
    fake.breaks = [10_000, 0]
    target = tmp_path / FILE
    with pytest.raises(HubUnreachable):
        get(fake, target)
    part = target.with_name(f"{FILE}.part")
    part.write_bytes(b"x" * 10_000)
    with pytest.raises(ChecksumWrong):
        get(fake, target)
    get(fake, target)
    assert target.read_bytes() == content


def test_what_is_no_gguf_is_thrown_away(fake: FakeHub, tmp_path: Path) -> None:
    fake.files[REPOSITORY][FILE] = b"<html>" * 100
    target = tmp_path / FILE
    with pytest.raises(ModelInvalid, match="letters GGUF"):
        get(fake, target)
    assert leftovers(target) == []


def test_a_plain_address_is_fetched_without_a_promise(fake: FakeHub, content: bytes, tmp_path: Path) -> None:
    with Hub(fake.address) as hub:
        file = hub.find(read_name(f"{fake.store}/store/{REPOSITORY}/{FILE}"))
        assert (file.name, file.size, file.sha256) == (FILE, len(content), None)
        fake.breaks = [10_000]
        assert fetch(hub, file, tmp_path / FILE, lambda *_: None) == hashlib.sha256(content).hexdigest()


def test_a_file_of_unknown_size_is_gone_on_with_to_its_end(
    fake: FakeHub, content: bytes, tmp_path: Path
) -> None:
    url = f"{fake.store}/store/{REPOSITORY}/{FILE}"
    file, target = HubFile(name=FILE, repository=None, url=url, size=None, sha256=None), tmp_path / FILE
    fake.breaks = [len(content) - 1, 0]
    with Hub(fake.address) as hub:
        with pytest.raises(HubUnreachable):
            fetch(hub, file, target, lambda *_: None)
        target.with_name(f"{FILE}.part").write_bytes(content)
        fetch(hub, file, target, lambda *_: None)
    assert target.read_bytes() == content
    assert downloads(fake)[-1] == f"bytes={len(content)}-"


def test_a_disk_without_room_is_said_before_anything_is_fetched(fake: FakeHub, tmp_path: Path) -> None:
    huge = HubFile(name=FILE, repository=None, url=f"{fake.address}/x", size=1 << 60, sha256=None)
    with Hub(fake.address) as hub, pytest.raises(DiskFull, match=r"needs .* more, and .* are free"):
        fetch(hub, huge, tmp_path / FILE, lambda *_: None)
    assert fake.requests == []


def test_a_disk_that_fills_up_on_the_way_keeps_what_has_come(fake: FakeHub, tmp_path: Path) -> None:
    def full(have: int, _: int | None) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Hub(fake.address) as hub, pytest.raises(DiskFull, match="what has come is kept"):
        fetch(hub, hub.find(read_name(REPOSITORY)), tmp_path / FILE, full)
    assert (tmp_path / f"{FILE}.part").stat().st_size > 0


def test_a_folder_that_cannot_be_made_is_a_sentence(fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FetchFailed, match="cannot be written"):
        get(fake, tmp_path / "file" / FILE)


def test_two_do_not_fetch_the_same_file_at_once(fake: FakeHub, tmp_path: Path) -> None:
    with (tmp_path / f"{FILE}.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FetchFailed, match="Another process"):
            get(fake, tmp_path / FILE)


def test_any_number_of_breaks_gives_the_same_file(fake: FakeHub, content: bytes, tmp_path: Path) -> None:
    random.seed(1)
    for number in range(5):
        fake.breaks = [random.randint(0, len(content) // 3) for _ in range(6)]
        target = tmp_path / f"{number}.gguf"
        for _ in range(8):
            try:
                get(fake, target)
                break
            except HubUnreachable:
                continue
        assert target.read_bytes() == content


# Who may


def test_the_token_is_shown_to_the_hub_and_to_nobody_else(
    fake: FakeHub, content: bytes, tmp_path: Path
) -> None:
    fake.token = "hf_secret"
    get(fake, tmp_path / FILE, token="hf_secret")
    assert (tmp_path / FILE).read_bytes() == content
    assert {headers.get("Authorization") for headers in fake.sent(f"/{REPOSITORY}/")} == {"Bearer hf_secret"}
    assert ["Authorization" in headers for headers in fake.sent("/store/")] == [False]


@pytest.mark.parametrize(("token", "kind"), [(None, ModelUnknown), ("hf_wrong", HubRefused)])
def test_without_the_right_token_the_sentence_says_how_to_give_one(
    fake: FakeHub, token: str | None, kind: type[FetchFailed]
) -> None:
    fake.token = "hf_secret"
    with pytest.raises(kind, match="XNAI_MODELS_TOKEN"):
        find(fake, f"{REPOSITORY}:Q8_0", token)


def test_conditions_have_to_be_accepted_at_the_hub(fake: FakeHub) -> None:
    fake.gated = {REPOSITORY}
    with pytest.raises(HubRefused, match="wants its conditions"):
        find(fake, REPOSITORY)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_in_trouble_is_said_with_its_status(fake: FakeHub, status: int) -> None:
    fake.status = status
    with pytest.raises(HubUnreachable, match=str(status)):
        find(fake, REPOSITORY)


def test_a_hub_that_is_not_there_is_named() -> None:
    with Hub("http://127.0.0.1:1") as hub, pytest.raises(HubUnreachable, match=r"127\.0\.0\.1:1 cannot"):
        hub.find(read_name(REPOSITORY))


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"\xff\xfe",
        b"{}",
        b'[{"type": 1}]',
        b'[{"type": "file", "path": "a.gguf", "lfs": {"oid": null}}]',
        b'[{"type": ' + b"[" * 100_000,
        b'[{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
    ],
    ids=["a page", "no text", "an object", "a number", "no hash", "no end", "deep"],
)
def test_an_answer_that_is_no_list_of_files_is_said_to_be_none(fake: FakeHub, answer: bytes) -> None:
    fake.listing = answer
    with pytest.raises(HubUnreachable, match="does not answer as a hub"):
        find(fake, REPOSITORY)


def test_another_server_than_a_hub_is_said_to_be_none(fake: FakeHub) -> None:
    with Hub(f"{fake.address}/api/models?x=") as hub, pytest.raises(FetchFailed, match="does not answer as"):
        hub.find(read_name(REPOSITORY))
