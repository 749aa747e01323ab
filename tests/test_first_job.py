"""The first real job, by real processes: documents in, questions answered, and what survives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from gguf_models import write_model

from xnai.agents.curation.documents import Document
from xnai.agents.curation.requests import IngestRequest, Progress
from xnai.agents.curation.sources import read_sources
from xnai.agents.inference.requests import Models
from xnai.agents.retrieval.passages import Hit
from xnai.agents.retrieval.requests import SearchRequest
from xnai.bus import open_bus
from xnai.bus.locating import read_address
from xnai.deploy.answering import Answer, Citation, cited, excerpt, request_for

XNAI = [sys.executable, "-P", "-m", "xnai.deploy.cli"]
DEMO = [sys.executable, "-P", "-m", "xnai.deploy.demo"]
# The prompt of the template ends with a line end, after which this model says "[1]".
SCRIPT = ["\n", "[", "1", "]", "</s>"]
SETTINGS = """
[limits]
ack_wait = "1s"
[agents.inference.settings]
threads = 1
{model}
[agents.curation]
[agents.retrieval]
"""


@contextmanager
def bounded(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """Kill a process that takes longer, so that whoever reads from it goes on."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def stack(folder: Path, *, model: str = "") -> Iterator[Path]:
    """A stack of the three agents, while the context is open."""
    (folder / "xnai.toml").write_text(SETTINGS.format(model=model))
    with (folder / "up.log").open("w") as log:
        process = subprocess.Popen(
            [*XNAI, "up"], cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            with bounded(process, 60):
                assert "ready\n" in process.stdout, (folder / "up.log").read_text()
            yield folder
        finally:
            process.terminate()
            with bounded(process, 60):
                process.stdout.read()
                assert process.wait() == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stack without a model that generates text."""
    with stack(tmp_path_factory.mktemp("plain")) as folder:
        yield folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "cats.md").write_text("# Cats\n\n## Food\n\nCats eat fish.\n\n## Sleep\n\nCats sleep a lot.\n")
    (folder / "planets.md").write_text("# Planets\n\nJupiter is the largest planet.\n")
    return folder


def xnai(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*XNAI, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def ask(folder: Path, question: str, *options: str) -> Answer:
    done = xnai(folder, "ask", question, "--json", *options)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Answer)


# On a terminal


def test_documents_are_taken_in_and_asked_about_by_two_commands(plain: Path, library: Path) -> None:
    menu = library.rename(library.with_name("menu"))
    (menu / "planets.md").unlink()
    (menu / "cats.md").write_text("# Cats\n\n## Meals\n\nFor a kitten there is salmon on the menu.\n")
    done = xnai(plain, "ingest", str(menu), "pydoc:del")
    assert done.returncode == 0, done.stderr
    assert "2 documents in" in done.stdout
    assert done.stderr == "stored: menu/cats.md (1/2)\nstored: pydoc:del (2/2)\n"
    done = xnai(plain, "ask", "What is on the menu for a kitten?", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[1] menu/cats.md › Cats › Meals (0.")
    assert "    For a kitten there is salmon on the menu." in done.stdout
    assert done.stderr == (
        "There is no answer in words: [agents.inference.settings] of xnai.toml names no model.\n"
    )


def test_every_cited_span_is_verbatim_in_its_source(plain: Path, library: Path) -> None:
    asked = [str(library), "pydoc:with"]
    assert xnai(plain, "ingest", *asked).returncode == 0
    read = {item.source: item.text for item in read_sources(asked) if isinstance(item, Document)}
    for name in ("library", "pydoc:with"):
        answer = ask(plain, "How is a file closed?", "--limit", "100", "--under", name)
        assert answer.passages
        for passage in answer.passages:
            assert read[passage.source][passage.start : passage.end] == passage.text


def test_taking_in_the_same_again_changes_nothing(plain: Path, library: Path) -> None:
    xnai(plain, "ingest", str(library))
    before = ask(plain, "cats")
    *_, last = map(json.loads, xnai(plain, "ingest", "--json", str(library)).stdout.splitlines())
    assert (last["state"], last["passages"], last["counts"]) == ("finished", 0, {"unchanged": 2})
    assert ask(plain, "cats") == before


def test_a_path_is_that_of_whoever_asks(plain: Path, library: Path) -> None:
    (plain / "sub").mkdir(exist_ok=True)
    (plain / "sub" / "note.md").write_text("A note.")
    assert "1 document in" in xnai(plain / "sub", "ingest", "note.md").stdout


def test_a_path_that_is_not_there_is_one_sentence(plain: Path) -> None:
    done = xnai(plain, "ingest", "nowhere")
    assert done.returncode == 4
    assert done.stderr == f"error[handler_error]: there is no file or folder '{plain / 'nowhere'}'\n"


def test_what_cannot_be_read_is_named_and_the_status_says_so(plain: Path, library: Path) -> None:
    (library / "broken.md").symlink_to(library / "nothing")
    done = xnai(plain, "ingest", str(library))
    assert done.returncode == 1
    assert "failed: library/broken.md cannot be read" in done.stderr


# With a model


def test_an_answer_in_words_cites_its_passages(tmp_path: Path, library: Path) -> None:
    write_model(tmp_path / "scripted.gguf", script=SCRIPT, context=16_384)
    with stack(tmp_path, model='model = "scripted.gguf"\ncontext = 16384') as folder:
        assert xnai(folder, "ingest", str(library)).returncode == 0
        done = xnai(folder, "ask", "What do cats eat?", "--limit", "2")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == "[1]"
        answer = ask(folder, "What do cats eat?")
    assert (answer.answer, answer.cited) == ("[1]", (1,))


def test_as_many_passages_are_shown_to_a_model_as_it_takes() -> None:
    passages = [citation(number, "word " * 200) for number in range(1, 11)]
    small = Models(embedding="a", dimensions=1, generation="b", context=800)
    request = request_for("Why?", passages, small)
    assert request.max_tokens == 200
    shown = request.messages[-1].content
    assert "[1] a.md" in shown
    assert "[2] a.md" not in shown
    assert shown.endswith("Question: Why?")
    large = Models(embedding="a", dimensions=1, generation="b", context=100_000)
    assert "[10] a.md" in request_for("Why?", passages, large).messages[-1].content


def citation(number: int, text: str) -> Citation:
    return Citation(
        number=number, source="a.md", heading="", start=0, end=len(text), score=0.5, text=text, also=()
    )


def test_the_passages_that_an_answer_cites_are_found_in_it() -> None:
    assert cited("So it is [2], and so [1][2]. Not [a], not [].") == (1, 2)


def test_an_excerpt_is_verbatim_and_says_where_it_stops() -> None:
    assert list(excerpt("# Title\n\nOne line.\n")) == ["# Title", "One line."]
    *first, last = excerpt("word " * 500)
    assert last == "…"
    assert "".join(first) in "word " * 500


# After a kill


def pid_of(agent: str, folder: Path) -> int:
    """The process of an agent of the stack in this folder."""
    parent = f"--parent={read_address(folder / '.xnai' / 'bus.json').pid}"
    (found,) = [line for line in processes(parent) if f"agents.{agent}.agent" in line]
    return int(found.split()[0])


def processes(word: str) -> list[str]:
    """Process id and command line of those that have this word in theirs."""
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if word in line]


async def test_an_agent_that_is_killed_in_the_middle_goes_on_where_it_was(
    plain: Path, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(160):
        (many / f"{number:03}.md").write_text(f"# Note {number}\n\nThis is said in note {number}.\n")
    address = read_address(plain / ".xnai" / "bus.json")
    request = IngestRequest(paths=(str(many),))
    with anyio.fail_after(60):
        async with open_bus(address) as bus:
            steps: list[Progress] = []
            async for step in bus.stream("curation.ingest", request, Progress, id="killed"):
                if not steps:
                    os.kill(pid_of("curation", plain), signal.SIGKILL)
                steps.append(step)
            attempts = [event.facts.attempt async for event in bus.subscribe("killed")]
            search = SearchRequest(query="a note", limit=100, under="many")
            hits = await bus.call("retrieval.search", search, list[Hit])
            again = [step async for step in bus.stream("curation.ingest", request, Progress)]
    assert max(attempts) > 1
    assert [step.source for step in steps] == [*(f"many/{number:03}.md" for number in range(160)), ""]
    assert steps[-1].counts == {"stored": 160}
    assert steps[-1].passages == 160
    assert len({hit.passage.id for hit in hits}) == len({hit.passage.source for hit in hits}) == 100
    assert again[-1].counts == {"unchanged": 160}


# The demo


def start_demo(folder: Path, library: Path, **env: str) -> subprocess.Popen[str]:
    """The demo, with its own temporary folder in `folder`."""
    return subprocess.Popen(
        [*DEMO, str(library)],
        env={**os.environ, "TMPDIR": str(folder), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (folder := tmp_path / "place").mkdir()
    return folder


def test_the_demo_does_the_job_and_leaves_nothing_behind(place: Path, library: Path) -> None:
    with start_demo(place, library) as demo:
        said, errors = demo.communicate(timeout=100)
    assert demo.returncode == 0, errors
    assert "2 documents in" in said
    assert said.count("What is said about") == 3
    assert "passages stand word for word in their sources" in said
    assert "processes  5: xnai up, nats-server, inference, curation, retrieval" in said
    assert (processes(str(place)), list(place.iterdir())) == ([], [])


def test_the_demo_is_interrupted_without_leaving_anything_behind(place: Path, library: Path) -> None:
    with start_demo(place, library) as demo:
        assert demo.stdout is not None
        with bounded(demo, 60):
            assert any("take tasks" in line for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert (processes(str(place)), list(place.iterdir())) == ([], [])


def test_a_demo_without_the_embedding_model_is_one_sentence(place: Path, library: Path) -> None:
    with start_demo(place, library, XDG_CACHE_HOME=str(place)) as demo:
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert errors.startswith(
        "error[demo_failed]: The stack does not come up: the embedding model is not here"
    )
    assert errors.count("\n") == 1
    assert processes(str(place)) == []
