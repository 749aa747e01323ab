"""One connection to the broker: send, ask, listen, and be told when the link was down."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import anyio
import msgspec
from nats.errors import Error as NatsError

from xnai.bus.access import NOTHING, Access, HungUp, answers_to, explained, inbox_of, shown, tls
from xnai.bus.client import Client, Receive
from xnai.bus.keys import Key
from xnai.bus.parser import Frame
from xnai.bus.waiting import new_future, within
from xnai.protocol.errors import NotAllowed, ServerTooOld, Unavailable

log = logging.getLogger(__name__)
_NEEDED_API_LEVEL = 2
_REQUEST_TIMEOUT = 5.0
_PING_INTERVAL = 10
_RECONNECT_DELAY = 0.2
_ASKED_AGAIN = (0.03, 0.1, 0.4)  # seconds; it takes the server milliseconds, unless it is busy
_REFUSED_AT_FIRST = (0.1, 0.4, None)  # seconds: a server that reads its settings again knows nobody meanwhile
_REFUSED_FOR_GOOD = 5.0  # seconds: while a key changes, the old one may be refused for a moment
_VIOLATION = re.compile(r"permissions violation for (publish|subscription) to \"?([^\s\"]+)")


class _Api(msgspec.Struct, frozen=True):
    level: int = 0


class _AccountInfo(msgspec.Struct, frozen=True):
    api: _Api = _Api()


_read_account = msgspec.json.Decoder(_AccountInfo).decode


class NoResponders(Unavailable):
    """Nobody listens on the subject: there is no such stream, or an election is on."""


@asynccontextmanager
async def open_transport(
    url: str, *, access: Access = NOTHING, name: str = "xnai"
) -> AsyncIterator[Transport]:
    """Connect to the broker at `url`, for example `nats://127.0.0.1:4222`; close on exit.

    Once open, a lost link is looked for without end and found again.

    Raises:
        NoBus: nothing answers there, or what does breaks off each time.
        NotAllowed: the key is missing, or the broker does not take it or the token, or offers no JetStream.
        ServerTooOld: it is older than 2.12.
        InvalidArgument: `url` is no address.
    """
    key = Key(access.key) if access.key else None
    if key is not None:
        key.check()
    async with AsyncExitStack() as stack:
        for pause in _REFUSED_AT_FIRST:
            transport = Transport(Client(key), shown(url), key)
            stack.push_async_callback(_shut, transport.client)
            try:
                await transport.connect(url, access, name)
            except (NotAllowed, HungUp):
                if key is None or pause is None:
                    raise
                await anyio.sleep(pause)
            else:
                break
        yield transport


async def _shut(client: Client) -> None:
    with anyio.CancelScope(shield=True):
        await client.shut()


class Transport:
    """All answers come to one inbox; `generation` counts the links, one more at each reconnect."""

    def __init__(self, client: Client, address: str, key: Key | None = None) -> None:
        self.client = client
        self.address = address
        self.key = key
        self.generation = 0
        self.name = ""
        self.inbox = ""
        self._tokens = map(str, itertools.count())
        self._replies: dict[str, Receive] = {}
        self._changed = anyio.Event()
        self._when_back: list[Callable[[], None]] = []
        self._when_lost: list[Callable[[], None]] = []
        self.when_denied: list[Callable[[str], None]] = []
        self._asked_now: set[tuple[str, asyncio.Future[Any]]] = set()
        self._refused_since = math.inf
        self._refusal: NotAllowed | None = None
        self._is_in = False

    @property
    def silence(self) -> NotAllowed | None:
        """Why nothing is heard any more, where the broker is there and does not let us in again."""
        if self.connected or time.monotonic() - self._refused_since <= _REFUSED_FOR_GOOD:
            return None
        shown = f"the key {self.key.file}" if self.key else "our token"
        return NotAllowed(f"The broker at {self.address} does not take {shown} any more: it was revoked.")

    @property
    def confined(self) -> bool:
        """Whether the broker lets us only read what is ours."""
        return self.key is not None and not self.key.is_of_the_system

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    @property
    def max_payload(self) -> int:
        """The largest message, in bytes, that the server takes."""
        return self.client.max_payload

    async def connect(self, url: str, access: Access, name: str) -> None:
        self.name = name
        try:
            await self.client.connect(
                url,
                token=access.token,
                tls=tls(access.ca) if self.address.startswith("tls:") else None,
                tls_hostname=access.server_name,
                name=name,
                inbox_prefix=inbox_of(name),
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=_RECONNECT_DELAY,  # type: ignore[arg-type]  # seconds, used as a float
                ping_interval=_PING_INTERVAL,
                error_cb=self._failed,
                disconnected_cb=self._disconnected,
                reconnected_cb=self._reconnected,
            )
        except (NatsError, OSError, TimeoutError) as error:
            raise explained(error, self.address, access) from error
        self.client.options |= {"allow_reconnect": True, "max_reconnect_attempts": -1}
        self.inbox = self.client.new_inbox()
        await self.client.listen(f"{self.inbox}.*", self._answered)
        await self._check_server()
        self._is_in = True

    async def _check_server(self) -> None:
        version = self.client.connected_server_version
        if self._refusal is not None:
            raise self._refusal
        try:
            answer = await self.request("$JS.API.INFO")
        except NoResponders:
            raise NotAllowed(f"The server at {self.address} offers no JetStream to this login.") from None
        if _read_account(answer.data).api.level < _NEEDED_API_LEVEL:
            raise ServerTooOld(
                f"The server at {self.address} is nats-server {version.major}.{version.minor}; "
                "2.12 or newer is needed: an older one would admit two outcomes of one task."
            )

    async def request(self, subject: str, data: bytes = b"", *, timeout: float = _REQUEST_TIMEOUT) -> Frame:
        """The first answer to a question.

        Raises:
            NoResponders: nobody listens.
            Unavailable: no answer came within `timeout` seconds.
        """
        (frame,) = await self.request_all([subject], data, timeout=timeout)
        if frame.status == 503:
            raise NoResponders(f"Nobody answers on {subject}.")
        return frame

    async def request_all(
        self, subjects: Iterable[str], data: bytes = b"", *, timeout: float = _REQUEST_TIMEOUT
    ) -> list[Frame]:
        """The first answer to each of several questions, asked at once; status 503 where nobody listens.

        While the server reads again who is who, nobody seems to listen: where it knows us by a key, what
        nobody answers is asked again.

        Raises:
            Unavailable: they did not all come within `timeout` seconds.
        """
        asked = list(subjects)
        frames = await self._ask_all(asked, data, timeout)
        for delay in _ASKED_AGAIN if self.key else ():
            left = [number for number, frame in enumerate(frames) if frame.status == 503]
            if not left:
                break
            await anyio.sleep(delay)
            again = await self._ask_all([asked[number] for number in left], data, timeout)
            for number, frame in zip(left, again, strict=True):
                frames[number] = frame
        return frames

    async def _ask_all(self, subjects: list[str], data: bytes, timeout: float) -> list[Frame]:
        with ExitStack() as stack:
            answers = [stack.enter_context(self._asked(subject, data)) for subject in subjects]
            until = time.monotonic() + timeout
            try:
                return [await within(until - time.monotonic(), answer) for answer in answers]
            except TimeoutError:
                raise self.silence or Unavailable(
                    f"The broker at {self.address} did not answer within {timeout:g} s."
                ) from None

    async def ask_member(self, subject: str, data: bytes, *, timeout: float = _REQUEST_TIMEOUT) -> Frame:
        """What another member answers: to a place made for it, so that it cannot answer in others' names.

        Raises:
            NoResponders, Unavailable: as `request`.
        """
        answer = new_future()
        place = f"{answers_to(self.name)}.{secrets.token_hex(11)}"
        async with self.listen(place, _into(answer)):
            with self.asking(Question(subject, data, place), answer):
                try:
                    frame: Frame = await within(timeout, answer)
                except TimeoutError:
                    raise Unavailable(f"Nobody answered on {subject} within {timeout:g} s.") from None
        if frame.status == 503:
            raise NoResponders(f"Nobody answers on {subject}.")
        return frame

    @contextmanager
    def _asked(self, subject: str, data: bytes) -> Iterator[asyncio.Future[Frame]]:
        """The answer to come to a question."""
        answer = new_future()
        with self.expect(_into(answer)) as reply, self.asking(Question(subject, data, reply), answer):
            yield answer

    @contextmanager
    def asking(
        self, question: Question, answer: asyncio.Future[Any], *, again: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Ask now, and once more each time that the link was lost meanwhile, after calling `again`.

        Where the broker forbids the question, `answer` gets NotAllowed.
        """

        def ask() -> None:
            again()
            self.client.post(question.subject, question.data, reply=question.reply)

        place = (question.subject, answer)
        self._asked_now.add(place)
        try:
            with self.when_back(ask):
                if self.connected:
                    self.client.post(question.subject, question.data, reply=question.reply)
                yield
        finally:
            self._asked_now.discard(place)

    def expect(self, receive: Receive) -> _Expected:
        """A reply subject whose messages go to `receive` while the context is open."""
        return _Expected(self._replies, f"{self.inbox}.", next(self._tokens), receive)

    def _answered(self, frame: Frame) -> None:
        if receive := self._replies.get(frame.subject[len(self.inbox) + 1 :]):
            receive(frame)

    @asynccontextmanager
    async def listen(self, subject: str, receive: Receive, *, queue: str = "") -> AsyncIterator[None]:
        """Hand over all that is sent to `subject` while the context is open; of a `queue` one hears it."""
        subscription = await self.client.listen(subject, receive, queue=queue)
        try:
            yield
        finally:
            if not self.client.is_closed:
                with anyio.CancelScope(shield=True):
                    await subscription.unsubscribe()

    async def flush(self) -> None:
        """Return once the server has read all that was written, subscriptions above all.

        A question, because it is asked again when the link is lost meanwhile. Raises Unavailable.
        """
        await self.request("$JS.API.INFO")

    async def reconnections(self) -> AsyncIterator[None]:
        """Yield after each time that the link was lost and found; two in quick succession may be one."""
        seen = self.generation
        while True:
            while self.generation == seen:
                await self._changed.wait()
            seen = self.generation
            yield

    @contextmanager
    def when_lost(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` each time that the link is lost, before anything of the next one is heard."""
        self._when_lost.append(callback)
        try:
            yield
        finally:
            self._when_lost.remove(callback)

    @contextmanager
    def when_back(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` after each time that the link was lost and found, while the context is open.

        For generators, which may hold no task of their own.
        """
        self._when_back.append(callback)
        try:
            yield
        finally:
            self._when_back.remove(callback)

    async def _reconnected(self) -> None:
        log.info("the link to the broker is back", extra={"broker": self.address})
        self._refused_since = math.inf
        self.generation += 1
        for callback in tuple(self._when_back):
            callback()
        self._changed.set()
        self._changed = anyio.Event()

    async def _disconnected(self) -> None:
        if not self.client.is_closed:
            log.warning("the link to the broker is lost", extra={"broker": self.address})
            for callback in tuple(self._when_lost):
                callback()

    async def _failed(self, error: Exception) -> None:
        said = str(error).lower()
        if "authorization" in said or "authentication" in said:
            self._refused_since = min(self._refused_since, time.monotonic())
            self._turn_away("does not take {} any more")
        denied = _VIOLATION.search(said)
        log.log(logging.WARNING if denied else logging.DEBUG, "the broker says: %s", error)
        if denied and denied[1] == "publish":
            self._denied(denied[2])
        elif denied and denied[2].startswith(self.inbox.lower()):
            self._turn_away("knows {} as that of somebody else")

    def _turn_away(self, why: str) -> None:
        """While we come in, a refusal is for good: nothing will be answered."""
        if not self._is_in:
            shown = f"the key {self.key.file}" if self.key else "our token"
            self._refusal = NotAllowed(f"The broker at {self.address} {why.format(shown)}.")
            for _, answer in self._asked_now:
                if not answer.done():
                    answer.set_exception(self._refusal)

    def _denied(self, subject: str) -> None:
        """The broker forbids to say anything on a subject, which nats-py has put into small letters."""
        for asked, answer in tuple(self._asked_now):
            if asked.lower() == subject and not answer.done():
                answer.set_exception(forbidden(asked))
        for callback in tuple(self.when_denied):
            callback(subject)


class Question(NamedTuple):
    """What is asked, where, and where the answer goes."""

    subject: str
    data: bytes
    reply: str


def _into(answer: asyncio.Future[Frame]) -> Receive:
    return lambda frame: None if answer.done() else answer.set_result(frame)


def forbidden(subject: str) -> NotAllowed:
    """The error where the broker forbids what was asked."""
    return NotAllowed(f"The broker does not allow us to send to {subject}.")


class _Expected:
    """A place among the answers, taken on entry and given back on exit."""

    def __init__(
        self, replies: dict[str, Receive], prefix: str, token: str, receive: Callable[[Frame], None]
    ):
        self._replies, self._prefix, self._token, self._receive = replies, prefix, token, receive

    def __enter__(self) -> str:
        self._replies[self._token] = self._receive
        return self._prefix + self._token

    def __exit__(self, *_: object) -> None:
        self._replies.pop(self._token, None)
