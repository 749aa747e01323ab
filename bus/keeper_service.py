"""What the keeper does for those whom the broker confines: makes their queues, reads to them what is theirs.

The broker has checked who asks, by the subject: whose task it is, or which agent they serve, stands in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from xnai.bus.asking import answering
from xnai.bus.jetstream import After, JetStream, Page
from xnai.bus.streams import Limits, declare_agent, declare_shared
from xnai.bus.transport import Transport
from xnai.protocol import subjects
from xnai.protocol.envelope import decode
from xnai.protocol.errors import InvalidArgument, MalformedMessage
from xnai.protocol.names import check_id, check_name

_after = msgspec.json.Decoder(After)


class KeeperService:
    """Answers on the keeper's own link."""

    def __init__(self, transport: Transport, limits: Limits) -> None:
        self._transport, self._api, self._limits = transport, JetStream(transport), limits

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Answer while the context is open."""
        async with AsyncExitStack() as stack:
            answers = (
                (subjects.reading("*", "*", "*"), self._read, -2),
                (subjects.declaring("*"), self._declare, -1),
            )
            for subject, answer, asker in answers:
                await stack.enter_async_context(answering(self._transport, subject, answer, asker=asker))
            await self._transport.flush()
            yield

    async def _read(self, tokens: list[str], question: bytes) -> Page:
        """Some events of one task, for its sender."""
        agent, sender, id = check_name(tokens[3], "agent name"), tokens[4], check_id(tokens[5])
        try:
            after = decode(_after, question).after
        except MalformedMessage as error:
            raise InvalidArgument(f"This is no question for events. {error}") from error
        stream, pattern = subjects.log_stream(agent), subjects.log(agent, sender, id)
        return await self._api.page(stream, pattern, after=after)

    async def _declare(self, tokens: list[str], _: bytes) -> None:
        agent = check_name(tokens[-1], "agent name")
        await declare_shared(self._api, self._limits)
        await declare_agent(self._api, agent, self._limits)
