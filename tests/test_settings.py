"""What `xnai.toml` and the variables may say, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError

from xnai.bus import Limits
from xnai.deploy.folders import find_settings, stack_folder
from xnai.deploy.settings import DEFAULT_AGENTS, LimitsTable, Settings, read_settings
from xnai.deploy.units import read_duration, read_size
from xnai.protocol import InvalidSettings

WHOLE = """
[server]
port = 4222
token = "secret"
sync_interval = "always"
max_payload = "2MiB"
max_file_store = "10 GB"
binary = "/opt/nats-server"

[limits]
queue = 50
log = "1GiB"
blobs = 1000
duplicate_window = "2m"
ack_wait = "500ms"
replicas = 3

[agents.maths]
module = "examples/maths.py"
concurrency = 8
env = { TZ = "UTC" }
settings = { digits = 12, deep = { er = [1, 2] } }

[agents.inference]

[keeper]
interval = 1
kept = "7d"
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "xnai.toml"
    file.write_text(text)
    return file


def refusal(folder: Path, text: str, **variables: str) -> str:
    file = write(folder, text)
    with pytest.raises(InvalidSettings) as caught:
        read_settings(file, variables)
    return str(caught.value).replace(str(file), "FILE")


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    read = read_settings(write(tmp_path, WHOLE), {})
    assert read.server.port == 4222
    assert (read.server.max_payload, read.server.max_file_store) == (2 << 20, 10_000_000_000)
    assert read.limits.limits() == Limits(
        queue=50, log=1 << 30, blobs=1000, duplicate_window=120.0, ack_wait=0.5, replicas=3
    )
    maths = read.agents["maths"]
    assert (maths.module, maths.concurrency, maths.env) == ("examples/maths.py", 8, {"TZ": "UTC"})
    assert maths.settings == {"digits": 12, "deep": {"er": [1, 2]}}
    assert read.agents["inference"].module == DEFAULT_AGENTS["inference"]
    assert (read.keeper.interval, read.keeper.kept) == (1.0, 604_800.0)


def test_without_a_file_there_are_the_three_agents_of_the_project() -> None:
    read = read_settings(None, {})
    assert {name: agent.module for name, agent in read.agents.items()} == DEFAULT_AGENTS
    assert list(read.agents) == ["inference", "curation", "retrieval"]
    assert read.limits.limits() == Limits()
    assert read.server.url is None


def test_a_file_that_names_no_agents_keeps_those_three(tmp_path: Path) -> None:
    assert list(read_settings(write(tmp_path, "[server]\nport = 1\n"), {}).agents) == list(DEFAULT_AGENTS)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read_settings(None, {}).server.port = 1


def test_every_limit_of_the_bus_can_be_set() -> None:
    assert list(LimitsTable.model_fields) == list(Limits.__struct_fields__)


def test_a_variable_stands_above_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[limits]\nlog = 5\nqueue = 6\n")
    read = read_settings(file, {"XNAI_LIMITS_LOG": "2GiB", "XNAI_KEEPER_KEPT": "1d", "XNAI_NAME": "me"})
    assert (read.limits.log, read.limits.queue, read.keeper.kept) == (2 << 30, 6, 86_400.0)


def test_the_variables_that_find_a_bus_name_an_outside_broker() -> None:
    server = read_settings(None, {"XNAI_URL": "nats://10.0.0.1:4222", "XNAI_TOKEN": "t"}).server
    assert (server.url, server.token) == ("nats://10.0.0.1:4222", "t")


def test_a_token_is_never_shown() -> None:
    assert "hidden" not in repr(Settings.model_validate({"server": {"token": "hidden"}}))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[sever]\n", "FILE, sever: there is no such key. Did you mean server?"),
        ("[server]\nprot = 1\n", "FILE, server.prot: there is no such key. Did you mean port?"),
        (
            '[agents.maths]\nmodule = "m"\nconcurency = 2\n',
            "FILE, agents.maths.concurency: there is no such key. Did you mean concurrency?",
        ),
        (
            "[keeper]\nzzz = 1\n",
            "FILE, keeper.zzz: there is no such key. Known are interval, kept.",
        ),
        ("[server]\nport = 70000\n", "FILE, server.port: input should be less than or equal to 65535."),
        ('[server]\nport = "x"\n', "FILE, server.port: input should be a valid integer"),
        (
            '[limits]\nlog = "1 gigabyte"\n',
            "FILE, limits.log: '1 gigabyte' is no size: write a number of bytes, or for example \"1GiB\".",
        ),
        ('[limits]\nack_wait = "soon"\n', "FILE, limits.ack_wait: 'soon' is no duration"),
        ("[limits]\nack_wait = 0\n", "FILE, limits.ack_wait: input should be greater than 0."),
        ("limits = 3\n", "FILE, limits: input should be a valid dictionary"),
        ("[agents.maths]\n", 'FILE, agents: maths needs a module, for example module = "maths.py".'),
        ('[agents.Maths]\nmodule = "m"\n', "FILE, agents.Maths: 'Maths' is no agent name"),
        ('[agents.system]\nmodule = "m"\n', "FILE, agents.system: 'system' is reserved"),
        ('[server]\nurl = "localhost"\n', "FILE, server.url: string should match"),
        ("[server\n", "FILE cannot be read: Expected ']' at the end of a table declaration (at line 1"),
        ("[limits]\nlog = -1\n[server]\nport = -1\n", " (1 more)"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_place_and_reason(
    tmp_path: Path, text: str, sentence: str
) -> None:
    assert sentence in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"XNAI_LIMITS_LGO": "1"},
            "XNAI_LIMITS_LGO is no variable that is known here. Did you mean XNAI_LIMITS_LOG?",
        ),
        ({"XNAI_SERVER_PORT": "many"}, "XNAI_SERVER_PORT: input should be a valid integer"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    tmp_path: Path, variables: dict[str, str], sentence: str
) -> None:
    assert sentence in refusal(tmp_path, "", **variables)


def test_a_file_that_is_not_utf_8_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "xnai.toml"
    file.write_bytes(b"\xff")
    with pytest.raises(InvalidSettings, match=r"cannot be read: 'utf-8' codec"):
        read_settings(file, {})


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (0, 0),
        (7, 7),
        ("7", 7),
        ("7B", 7),
        ("1 kB", 1000),
        ("1KiB", 1024),
        ("1.5gib", 3 << 29),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(said: object, size: int) -> None:
    assert read_size(said) == size


@pytest.mark.parametrize(
    ("said", "seconds"),
    [(2, 2.0), (0.5, 0.5), ("250ms", 0.25), ("90", 90.0), ("5m", 300.0), ("1.5 h", 5400.0)],
)
def test_durations_are_read_as_people_write_them(said: object, seconds: float) -> None:
    assert read_duration(said) == pytest.approx(seconds)


@pytest.mark.parametrize("said", ["", "GiB", "-1", "1 2", "1XB", "1e9", True, None, [1], "１GiB㎏"])
def test_anything_else_is_neither_size_nor_duration(said: object) -> None:
    for read in (read_size, read_duration):
        with pytest.raises(ValueError, match="is no"):
            read(said)


def test_the_settings_are_looked_for_upwards(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert stack_folder(below) == below / ".xnai"
    (tmp_path / ".xnai").mkdir()
    assert stack_folder(below) == tmp_path / ".xnai"
    file = write(tmp_path / "a", "")
    assert find_settings(below) == file
    assert stack_folder(below) == tmp_path / "a" / ".xnai"


def test_the_plan_of_a_stack_holds_all_that_was_read(tmp_path: Path) -> None:
    read = read_settings(write(tmp_path, WHOLE), {})
    plan = read.plan()
    assert msgspec.to_builtins(plan.agents) == {
        name: {**table.model_dump(), "needs": table.needs} for name, table in read.agents.items()
    }
    assert msgspec.to_builtins(plan.server) == read.server.model_dump()
    assert plan.limits == read.limits.limits()
    assert msgspec.to_builtins(plan.keeper) == read.keeper.model_dump()
    assert msgspec.to_builtins(plan.supervisor) == read.supervisor.model_dump()
