"""Which models the engine has in memory: what fits, what is loaded when it is asked for, and what goes."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engines import EngineProcess, end_of, engine, text_of
from gguf_models import write_model

from xnai.agents.inference.cores import cpus
from xnai.agents.inference.engine.governor import HALF_KEPT, HALF_SLOTS, NONE_IDLE, NOTHING, ONE_SLOT
from xnai.agents.inference.engine.llama import Abort
from xnai.agents.inference.engine.loading import Opener, fitted, planned
from xnai.agents.inference.engine.models import Models
from xnai.agents.inference.engine.outbox import Outbox
from xnai.agents.inference.engine.spinning import Spins
from xnai.agents.inference.errors import ModelTooLarge
from xnai.agents.inference.frames import (
    Count,
    Counted,
    Done,
    Frame,
    Loading,
    Open,
    Opened,
    Queued,
    Refused,
    Setup,
    Text,
    Unloaded,
)
from xnai.agents.inference.gguf_file import read_gguf

CONTEXT, MIB = 512, 1 << 20
NAMES = ("first", "second", "third")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: write_model(folder / f"{name}.gguf", seed=seed, context=CONTEXT)
        for seed, name in enumerate(NAMES)
    }


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Goes on with "notnotnot…" behind a "t", for ever."""
    path = tmp_path_factory.mktemp("models") / "endless.gguf"
    return write_model(path, script=["n", "o", "t", "n"], context=100_000)


def needs(path: Path, sequences: int = 1, context: int = CONTEXT) -> int:
    return planned(Open("", str(path), context=context), read_gguf(path), sequences).total


def opened(found: Opened | Refused) -> Opened:
    assert isinstance(found, Opened), found
    return found


@contextmanager
def room_for(count: float, files: dict[str, Path], *, patience: float = 0.0) -> Iterator[EngineProcess]:
    """An engine with room for so many models, of which all are open."""
    budget = int(count * needs(files["first"]))
    with engine(Setup(threads=1, memory=budget, patience=patience)) as found:
        for name, path in files.items():
            opened(found.open(path, name=name, context=CONTEXT, slots=1, kept=0))
        yield found


@pytest.fixture(scope="module")
def crowded(files: dict[str, Path]) -> Iterator[EngineProcess]:
    """There is room for one of three models, and nobody waits for it."""
    with room_for(1.2, files) as found:
        yield found


# What fits


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(files: dict[str, Path]) -> None:
    with engine(Setup(threads=1, memory=2 * MIB)) as found:
        refused = found.open(files["first"], context=CONTEXT)
        assert isinstance(refused, Refused)
        assert refused.code == "model_too_large"
        assert "weights 0.5" in refused.sentence
        assert "1 x 512 tokens x 0.2 KiB" in refused.sentence
        assert "2.0 are free" in refused.sentence
        assert found.status().loaded == ()


def test_what_a_model_takes_is_told_as_it_was_planned(files: dict[str, Path]) -> None:
    path = files["first"]
    with engine() as found:
        weights, kv, buffers = opened(found.open(path, context=CONTEXT, slots=3, kept=2)).memory
    plan = planned(Open("", "", context=CONTEXT), read_gguf(path), 5)
    assert weights == plan.weights
    assert kv == pytest.approx(plan.kv, abs=MIB / 100)  # llama.cpp says it with two decimals
    assert plan.compute / 2.5 <= buffers <= plan.compute + MIB // 10


@pytest.mark.parametrize(
    ("sequences", "size"), [(9, (4, 3)), (7, (4, 3)), (5, (4, 1)), (4, (4, 0)), (2, (2, 0)), (1, (1, 0))]
)
def test_fewer_are_kept_and_then_fewer_compute_where_there_is_little_room(
    files: dict[str, Path], sequences: int, size: tuple[int, int]
) -> None:
    path = files["first"]
    wanted, info = Open("", str(path), context=CONTEXT), read_gguf(path)
    assert fitted(wanted, info, (4, 3), room=needs(path, sequences)) == size
    with pytest.raises(ModelTooLarge):
        fitted(wanted, info, (4, 3), room=needs(path) - 1)


def test_how_many_sequences_pay_is_measured_within_the_memory_there_is(files: dict[str, Path]) -> None:
    with engine(Setup(threads=1, memory=needs(files["first"], 2))) as found:
        answer = opened(found.open(files["first"], context=CONTEXT, kept=4))
        assert answer.slots + answer.kept == 2
        assert sum(answer.memory) <= needs(files["first"], 2) + MIB // 10
        assert found.say("the", 3)


# What is loaded when


def test_a_model_for_later_is_loaded_when_it_is_asked_for(files: dict[str, Path]) -> None:
    with engine() as found:
        now = opened(found.open(files["first"], name="now", context=CONTEXT, slots=2))
        later = opened(found.open(files["first"], name="later", context=CONTEXT, slots=2, later=True))
        assert (now.loaded, later.loaded) == (True, False)
        for part in ("context", "template", "control_words", "begin_word", "end_word"):
            assert getattr(now, part) == getattr(later, part)
        assert found.status().loaded == ("now",)
        assert found.say("the", 8, model="later") == found.say("the", 8, model="now")
        assert set(found.status().loaded) == {"now", "later"}


def test_tokens_are_counted_without_the_weights(crowded: EngineProcess) -> None:
    before = crowded.status().loaded
    crowded.send(*(Count(number, name, ("the thing",)) for number, name in enumerate(NAMES, 901)))
    counted = [crowded.hear(number, Counted).data for number in (901, 902, 903)]
    assert counted == [counted[0]] * 3
    assert counted[0]
    assert crowded.status().loaded == before


def test_the_least_recently_used_model_goes_when_another_needs_its_room(files: dict[str, Path]) -> None:
    with room_for(2.2, files) as found:
        assert found.status().loaded == ("first", "second")
        found.say("the", 4, model="first")
        found.say("the", 4, model="third")
        assert set(found.status().loaded) == {"first", "third"}
        found.say("the", 4, model="second")
        assert set(found.status().loaded) == {"second", "third"}


def test_what_was_counted_is_not_lost_with_a_model(crowded: EngineProcess) -> None:
    crowded.say("the", 6, model="first")
    before = crowded.status()
    crowded.say("the", 6, model="second")
    after = crowded.status()
    assert (before.loaded, after.loaded) == (("first",), ("second",))
    assert after.prompts == before.prompts + 1
    assert after.generated > before.generated
    assert after.busy > before.busy


def test_requests_for_models_that_do_not_fit_together_are_all_answered_as_if_alone(
    crowded: EngineProcess,
) -> None:
    alone = {name: crowded.say("the", 12, model=name, cache=False) for name in NAMES}
    ids = {crowded.begin("the", 12, model=NAMES[number % 3], cache=False): number for number in range(12)}
    for id, frames in crowded.until(ids).items():
        assert text_of(frames) == alone[NAMES[ids[id] % 3]]


def test_what_is_asked_of_one_model_is_computed_together_before_another_is_loaded(
    files: dict[str, Path],
) -> None:
    with room_for(1.2, files, patience=300.0) as found:
        long = found.begin("the", 400, model="first", cache=False)  # while it goes on, the others come
        left = {found.begin("the", 30, model=NAMES[number % 3], cache=False) for number in range(30)} | {long}
        loads = 0
        while left:
            frame = found.receive()
            loads += isinstance(frame, Loading)
            if isinstance(frame, Done):
                left.discard(frame.id)
        assert 2 <= loads <= 8  # and not one for each


def test_a_model_that_works_without_end_yields_to_one_that_was_asked_for(
    endless: Path, files: dict[str, Path]
) -> None:
    budget = needs(endless, context=20_000) + needs(files["first"]) // 2
    with engine(Setup(threads=1, memory=budget, patience=0.0)) as found:
        opened(found.open(endless, name="endless", context=20_000, slots=1, kept=0))
        opened(found.open(files["first"], name="other", context=CONTEXT, slots=1, kept=0, later=True))
        running = found.begin("t", 19_000, model="endless", cache=False)
        assert found.hear(running, Text)
        queued = [found.begin("t", 19_000, model="endless", cache=False) for _ in range(3)]
        other = found.begin("the", 4, model="other")
        assert found.status().waiting == 4
        found.drop(running)
        ends: list[int] = []
        while other not in ends:
            if isinstance(frame := found.receive(), Done):
                ends.append(frame.id)
        assert ends == [running, other]
        assert found.hear(queued[0], Text)


def test_a_model_is_opened_beside_answers_that_go_on(endless: Path, files: dict[str, Path]) -> None:
    with engine() as found:
        opened(found.open(endless, name="endless", context=20_000, slots=1, kept=0))
        running = found.begin("t", 19_000, model="endless")
        assert found.hear(running, Text)
        found.send(Open("missing", str(files["first"]) + ".gone"))
        found.send(Open("other", str(files["first"]), context=CONTEXT, slots=1))
        answers: list[Opened | Refused] = []
        while len(answers) < 2:
            if isinstance(frame := found.receive(), Opened | Refused):
                answers.append(frame)
        refused, answer = answers
        assert isinstance(refused, Refused)
        assert (refused.code, refused.model) == ("model_missing", "missing")
        assert not opened(answer).loaded
        assert found.say("the", 4, model="other")
        assert found.status().running == 1
        found.drop(running)


# Requests that wait for a model


def test_a_request_that_waits_for_a_model_is_dropped_at_once_and_ends_at_its_deadline(
    endless: Path, files: dict[str, Path]
) -> None:
    budget = needs(endless, context=20_000) + needs(files["first"]) // 2
    with engine(Setup(threads=1, memory=budget, patience=300.0, queue=3)) as found:
        opened(found.open(endless, name="endless", context=20_000, slots=1, kept=0))
        opened(found.open(files["first"], name="other", context=CONTEXT, slots=1, kept=0, later=True))
        running = found.begin("t", 19_000, model="endless")
        assert found.hear(running, Text)
        late = found.begin("the", 4, model="other", deadline=0.05)
        assert found.hear(late, Done).finish == "deadline"
        waiting = [found.begin("the", 4, model="other") for _ in range(3)]
        assert [found.hear(id, Queued).position for id in waiting] == [0, 1, 2]
        (refused,) = found.end(found.begin("the", 4, model="other"))
        assert isinstance(refused, Refused)
        assert (refused.code, refused.retry_after is not None) == ("busy", True)
        assert found.status().waiting == 3
        found.drop(waiting[0])
        assert found.hear(waiting[0], Done).finish == "canceled"
        found.drop(running)
        assert all(end_of(frames).tokens_out for frames in found.until(waiting[1:]).values())


def test_a_file_that_was_damaged_since_is_an_error_for_those_who_ask_for_it(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "changing.gguf"
    shutil.copy(files["second"], path)
    with engine() as found:
        opened(found.open(files["first"], name="whole", context=CONTEXT, slots=1))
        opened(found.open(path, name="changing", context=CONTEXT, slots=1, later=True))
        path.write_bytes(path.read_bytes()[:100_000])
        found.begin("the", 4, model="changing")
        frames: list[Frame] = []
        while not (frames and isinstance(frames[-1], Refused)):
            frames.append(found.receive())
        assert [type(frame) for frame in frames] == [Queued, Loading, Unloaded, Refused]
        assert isinstance(frames[-1], Refused)
        assert frames[-1].code == "model_invalid"
        assert found.say("the", 4, model="whole")
        shutil.copy(files["second"], path)
        assert found.say("the", 4, model="changing")


# Short of memory


@pytest.fixture
def models(files: dict[str, Path]) -> Iterator[tuple[Models, list[Frame]]]:
    """Two models in this process, with four sequences that compute and four that are kept."""
    said: list[Frame] = []
    setup, clock = Setup(threads=1, memory=1 << 40), iter(range(0, 10**9, 100)).__next__
    out = Outbox(said.extend)
    out.put = said.append
    opener = Opener(setup, Abort(), out=out, clock=clock)
    found = Models(setup, opener, out=out, wake=_nothing, clock=clock)
    for name in ("first", "second"):
        found.open(Open(name, str(files[name]), context=CONTEXT, slots=4, kept=4))
    yield found, said
    for each in found.loaded():
        found.unload(each.name)


def _nothing() -> None:
    pass


def test_idle_models_shrink_while_memory_is_short_and_grow_again(
    models: tuple[Models, list[Frame]],
) -> None:
    found, said = models

    def sizes(level: int, now: float) -> list[tuple[int, int]]:
        found.relieve(level, now)
        return [each.size for each in found.loaded()]

    whole = sum(found.loaded()[0].model.context.memory)
    assert sizes(HALF_KEPT, 1e6) == [(4, 2)] * 2
    assert sizes(HALF_SLOTS, 1e6) == [(2, 0)] * 2
    assert sizes(ONE_SLOT, 1e6) == [(1, 0)] * 2
    assert sum(found.loaded()[0].model.context.memory) < whole
    assert sizes(NOTHING, 1e9) == [(4, 4)] * 2
    assert [frame.slots for frame in said[2:] if isinstance(frame, Opened)] == [4, 4, 2, 2, 1, 1, 4, 4]


def test_idle_models_go_one_by_one_when_nothing_else_is_left(models: tuple[Models, list[Frame]]) -> None:
    found, said = models
    found.loaded()[0].used = 1e9
    found.relieve(NONE_IDLE, 1e6)
    assert [each.name for each in found.loaded()] == ["first"]
    found.relieve(NONE_IDLE, 1e6)
    assert found.loaded() == []
    assert [frame.name for frame in said if isinstance(frame, Unloaded)] == ["second", "first"]


@contextmanager
def a_limit_of_memory(limit: int) -> Iterator[Path]:
    """The file that takes a process into a group with so many bytes of memory."""
    name = f"xnai-test-{os.getpid()}"
    for parent, bound, file in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "tasks"),
        ("/sys/fs/cgroup", "memory.max", "cgroup.procs"),
    ):
        group = Path(parent, name)
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / bound).exists():
                (group / bound).write_text(str(limit))
                yield group / file
                return
        finally:
            group.rmdir()
    pytest.skip("no control group can be made here")


def test_a_container_with_little_memory_gets_what_fits_and_is_not_killed(endless: Path) -> None:
    limit = 384 * MIB
    with a_limit_of_memory(limit) as join, engine() as found:
        join.write_text(str(found.process.pid))
        assert found.status().memory < limit
        refused = found.open(endless, name="long", context=100_000, slots=1, kept=0)
        assert isinstance(refused, Refused)
        assert refused.code == "model_too_large"
        shrunk = opened(found.open(endless, name="short", context=8192, slots=4, kept=200))
        assert (shrunk.slots, shrunk.kept < 200) == (4, True)
        done = found.until([found.begin("t " * 200, 64, model="short") for _ in range(8)])
        assert all(end_of(frames).tokens_out for frames in done.values())


# Threads


def test_a_team_of_threads_that_do_nothing_is_there_while_the_others_spin_briefly() -> None:
    spins, before, seen = Spins(), threading.active_count(), []
    for change in (spins.shorten, spins.shorten, spins.lengthen, spins.lengthen):
        change()
        seen.append(spins.short)
        if spins.short:
            assert len(list(Path("/proc/self/task").iterdir())) > len(cpus())
        else:
            assert threading.active_count() == before
    assert seen == [True, True, False, False]
