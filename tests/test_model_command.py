"""`xnai model`, as a person and a program use it, with a fake hub and the folders of other programs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_models import write_model
from hub import FakeHub, open_hub
from terminal import Done, command, program, until
from transcript import Player

from xnai.agents.inference.errors import InferenceError
from xnai.agents.inference.minilm import default_cache
from xnai.deploy.commands.completion import _parser
from xnai.deploy.completing import complete
from xnai.deploy.models.benching import measure
from xnai.deploy.models.errors import ModelChanged, ModelUnknown
from xnai.deploy.models.folders import find_models
from xnai.deploy.models.hub import Hub
from xnai.deploy.models.naming import read_name
from xnai.deploy.models.store import Store
from xnai.protocol.errors import InvalidArgument

REPOSITORY, FILE = "someone/tiny-GGUF", "tiny-F32.gguf"
NAME = f"{REPOSITORY}/{FILE}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / FILE, context=8192)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which no program has put anything yet."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OLLAMA_MODELS", str(home / ".ollama/models"))  # or the whole machine's is looked at
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return home


@pytest.fixture
def fake(model: Path) -> Iterator[FakeHub]:
    with open_hub() as hub:
        hub.files[REPOSITORY] = {FILE: model.read_bytes()}
        yield hub


@pytest.fixture
def project(tmp_path: Path, fake: FakeHub) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "xnai.toml").write_text(f'[models]\nhub = "{fake.address}"\n')
    return folder


async def xnai(project: Path, *words: str | Path) -> Done:
    return await command("model", *words, folder=project)


def put(path: Path, model: Path, seed: int = 0) -> Path:
    """The model at another place, and with another seed as another model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_model(path, seed=seed) if seed else Path(shutil.copy(model, path))


def fetched(fake: FakeHub, project: Path) -> Store:
    """A store into which the model was fetched."""
    store = Store(default_cache(), project)
    with Hub(fake.address) as hub:
        store.get(hub, hub.find(read_name(REPOSITORY)), lambda *_: None)
    return store


# As a person uses it


async def test_the_page_on_models_prints_what_it_shows(project: Path, model: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    before, _, after = page.partition("## How much memory")
    await Player(project).play(before)
    put(project / "models" / FILE, model)
    await Player(project).play(after)


async def test_programs_get_objects(project: Path, fake: FakeHub) -> None:
    done = await xnai(project, "get", f"{REPOSITORY}:F32", "--json")
    answer = json.loads(done.out)
    digest = fake.sha256(REPOSITORY, FILE)
    assert (done.status, done.err) == (0, "")
    assert (answer["fetched"], answer["sha256"], answer["quantization"]) == (True, digest, "F32")
    (row,) = json.loads((await xnai(project, "ls", "--json")).out)
    assert (row["name"], row["from"], row["fits"], row["sha256"]) == (NAME, "xnai", True, digest)
    shown = json.loads((await xnai(project, "show", FILE, "--slots", "2", "--json")).out)
    assert shown["memory"]["total"] == sum(shown["memory"][part] for part in ("weights", "kv", "compute"))


async def test_what_goes_wrong_is_a_sentence_with_a_status(project: Path, fake: FakeHub) -> None:
    store = fetched(fake, project)
    for words, status, code in (
        (("get", "a/b", "--hub", "http://127.0.0.1:1", "--json"), 1, "hub_unreachable"),
        (("rm", FILE), 2, "invalid_argument"),  # without a yes
    ):
        done = await xnai(project, *words)
        assert (done.status, done.out) == (status, ""), words
        assert done.err.startswith(f"error[{code}]: ")
        assert done.err.count("\n") == 1
    assert [each.name for each in store.all()] == [NAME]


async def test_a_fetch_that_is_ended_is_gone_on_with(project: Path, fake: FakeHub) -> None:
    half = default_cache() / REPOSITORY / f"{FILE}.part"
    fake.breaks, fake.stalls, kept = [200_000, 100_000], threading.Event(), 0

    def has_grown() -> bool:
        return half.exists() and half.stat().st_size > kept

    for number in (signal.SIGKILL, signal.SIGTERM):
        async with program("model", "get", REPOSITORY, folder=project) as getting:
            await until(has_grown)
            assert await getting.stop(number) == -number
        kept = half.stat().st_size
    fake.stalls.set()
    done = await xnai(project, "get", REPOSITORY, "--json")
    assert done.status == 0
    assert fake.sent("/store/")[-1]["Range"] == f"bytes={kept}-"
    assert Path(json.loads(done.out)["path"]).read_bytes() == fake.files[REPOSITORY][FILE]


async def test_check_ends_with_a_status_that_programs_see(project: Path, model: Path) -> None:
    file = put(project / "models" / FILE, model)
    file.write_bytes(file.read_bytes()[:-100])
    done = await xnai(project, "check", "--json")
    (row,) = json.loads(done.out)
    assert done.status == 1
    assert "100 bytes of weights are missing" in row["wrong"]
    assert (await xnai(project, "ls")).out.splitlines()[1].endswith("damaged: xnai model check")


# What is on the disk


def test_the_models_of_other_programs_are_found(home: Path, project: Path, model: Path) -> None:
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    blob = put(home / ".cache/huggingface/hub/models--o--r/blobs" / digest, model)
    snapshot = blob.parent.parent / "snapshots/abc/sub/model.gguf"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(blob)
    ollama = home / ".ollama/models"
    put(ollama / "blobs" / f"sha256-{digest}", model, seed=1)
    manifest = ollama / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": 1},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    (manifest.parent / "broken").write_text("{")
    put(home / ".lmstudio/models/o/r/studio.gguf", model, seed=2)
    put(home / ".local/share/nomic.ai/GPT4All/four.gguf", model, seed=3)
    put(home / ".cache/llama.cpp/o_r_cpp.gguf", model, seed=4)
    put(project / "models/own.gguf", model, seed=5)
    found = {(each.name, each.source, each.sha256) for each in find_models(default_cache(), project)}
    assert found == {
        ("o/r/sub/model.gguf", "Hugging Face", digest),
        ("tiny:latest", "Ollama", digest),
        ("o/r/studio.gguf", "LM Studio", None),
        ("four.gguf", "GPT4All", None),
        ("o_r_cpp.gguf", "llama.cpp", None),
        ("models/own.gguf", "this project", None),
    }


def test_their_folders_may_be_elsewhere(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cpp"))
    put(tmp_path / "hf/models--o--r/snapshots/abc/a.gguf", model)
    put(tmp_path / "cpp/b.gguf", model, seed=1)
    assert [each.name for each in find_models(default_cache(), None)] == ["o/r/a.gguf", "b.gguf"]


def test_a_file_with_two_names_and_a_link_to_nothing_count_once_and_never(
    home: Path, project: Path, model: Path
) -> None:
    file = put(project / "models/own.gguf", model)
    cache = home / ".cache/llama.cpp"
    cache.mkdir(parents=True)
    os.link(file, cache / "same.gguf")
    (cache / "gone.gguf").symlink_to(cache / "nowhere")
    assert [each.source for each in find_models(default_cache(), project)] == ["this project"]


def test_what_another_program_has_is_not_fetched_again(home: Path, fake: FakeHub, model: Path) -> None:
    put(home / ".cache/llama.cpp/other-name.gguf", model)
    store = Store(default_cache(), None)
    with Hub(fake.address) as hub:
        same = store.same(hub.find(read_name(REPOSITORY)))
    assert same is not None
    assert same.source == "llama.cpp"


def test_what_was_fetched_is_known_without_the_hub(fake: FakeHub, project: Path) -> None:
    store = fetched(fake, project)
    fake.requests.clear()
    for name in (f"{REPOSITORY}:F32", f"{REPOSITORY}:{FILE}"):
        already = store.already(read_name(name))
        assert already is not None
        assert already.name == NAME
    assert store.already(read_name(f"{REPOSITORY}:Q8_0")) is None
    assert fake.requests == []


def test_a_fetch_that_was_killed_before_its_record_was_written_is_taken_in(
    fake: FakeHub, project: Path
) -> None:
    store = fetched(fake, project)
    record = default_cache() / REPOSITORY / f"{FILE}.json"
    record.unlink()
    with Hub(fake.address) as hub:
        file = hub.find(read_name(REPOSITORY))
        assert store.same(file) is None
        store.get(hub, file, lambda *_: None)
    assert record.exists()
    assert len(fake.sent("/store/")) == 1


def test_a_file_that_has_changed_at_the_hub_is_not_written_over(fake: FakeHub, project: Path) -> None:
    store = fetched(fake, project)
    fake.files[REPOSITORY][FILE] += b"more"
    with Hub(fake.address) as hub, pytest.raises(ModelChanged, match="xnai model rm"):
        store.get(hub, hub.find(read_name(REPOSITORY)), lambda *_: None)


def test_a_name_may_be_short_as_long_as_it_means_one(fake: FakeHub, project: Path, model: Path) -> None:
    store = fetched(fake, project)
    path = default_cache() / NAME
    for name in (NAME, FILE, "tiny-F32", f"{REPOSITORY}:F32", str(path)):
        assert store.one(name).path == path
    put(project / "models" / FILE, model, seed=1)
    with pytest.raises(InvalidArgument, match="say which"):
        store.one("tiny-F32")
    with pytest.raises(ModelUnknown, match=f"did you mean {NAME}"):
        store.one("someone/tiny-GGUF/tiny-F16.gguf")


def test_a_file_that_changed_after_it_was_fetched_is_found_out(fake: FakeHub, project: Path) -> None:
    store = fetched(fake, project)
    path = default_cache() / NAME
    assert store.check(store.one(NAME)) is None
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "should have" in (store.check(store.one(NAME)) or "")
    path.write_bytes(content + b"more")
    assert "when it was fetched" in (store.check(store.one(NAME)) or "")


def test_only_what_was_fetched_here_is_deleted(home: Path, fake: FakeHub, project: Path, model: Path) -> None:
    other = put(home / ".cache/llama.cpp/other.gguf", model, seed=1)
    store = fetched(fake, project)
    with pytest.raises(InvalidArgument, match="was not fetched"):
        store.remove(store.one("other.gguf"))
    store.remove(store.one(NAME))
    assert other.exists()
    assert not (default_cache() / "someone").exists()


def test_a_model_that_the_engine_refuses_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"The engine refuses: .*nowhere\.gguf"):
        measure(tmp_path / "nowhere.gguf", slots=1, threads=1)


def test_the_shell_completes_actions_and_models(
    project: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    put(project / "models" / FILE, model)
    for words, expected in (
        (["model", "s"], ["show"]),
        (["model", "show", "mod"], [f"models/{FILE}"]),
    ):
        found = complete(words, _parser(words))
        assert isinstance(found, list)
        assert [each.word for each in found] == expected
