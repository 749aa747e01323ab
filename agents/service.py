"""What one process answers beside its tasks: to its owner, and to the plain `nats micro` tool.

The service protocol is that of NATS' ADR-32: PING, INFO and STATS under `$SRV`. A skill is an endpoint whose
subject is that of its tasks, and whose numbers are those of the log.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from xnai.agents.agent import Agent
from xnai.bus import Bus
from xnai.bus.access import ANSWERS, SERVICE_VERBS, service_places
from xnai.bus.parser import Frame
from xnai.protocol import subjects
from xnai.protocol.envelope import encode
from xnai.protocol.errors import Unavailable
from xnai.protocol.presence import DRAIN, PING, PROBE, Presence, SkillFacts

log = logging.getLogger(__name__)
_TYPES = dict(zip(SERVICE_VERBS, ("ping", "info", "stats"), strict=True))
_MAY_BE_ANSWERED = (f"{ANSWERS}.", "_INBOX")
_QUEUE = "tasks"  # nobody subscribes to it: the queue is a stream


class Service:
    """Answers in the name of one instance."""

    def __init__(
        self, bus: Bus, agent: Agent, presence: Callable[[], Presence], drain: Callable[[], None]
    ) -> None:
        self._bus, self._agent, self._presence, self._drain = bus, agent, presence, drain

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Answer while the context is open."""
        name, instance = self._agent.name, self._bus.instance
        places = {subjects.control(name, instance): self._controlled}
        for verb in _TYPES:
            places |= dict.fromkeys(service_places(verb, name, instance), self._asked)
        async with AsyncExitStack() as stack:
            for subject, receive in places.items():
                await stack.enter_async_context(self._bus.transport.listen(subject, receive))
            yield

    def _controlled(self, frame: Frame) -> None:
        if frame.data == PING:
            self._answer(frame, b"pong")
        elif frame.data == PROBE:
            self._answer(frame, encode(self._presence()))
        elif frame.data == DRAIN:
            self._answer(frame, b"draining")
            self._drain()
        else:
            log.warning("asked for something unknown", extra={"subject": frame.subject})

    def _asked(self, frame: Frame) -> None:
        verb = frame.subject.split(".")[1]
        presence = self._presence()
        said: dict[str, Any] = {
            "type": f"io.nats.micro.v1.{_TYPES[verb]}_response",
            "name": presence.agent,
            "id": presence.instance,
            "version": presence.version,
            "metadata": self._metadata(presence),
        }
        if verb == "INFO":
            said |= {
                "description": self._agent.description,
                "endpoints": self._endpoints(presence, _described),
            }
        elif verb == "STATS":
            said |= {"started": presence.started, "endpoints": self._endpoints(presence, _counted)}
        self._answer(frame, encode(said))

    def _metadata(self, presence: Presence) -> dict[str, str]:
        return {
            "roles": " ".join(presence.roles),
            "host": presence.host,
            "pid": str(presence.pid),
            "level": presence.level,
        }

    def _endpoints(
        self, presence: Presence, more: Callable[[SkillFacts], Mapping[str, object]]
    ) -> list[dict[str, object]]:
        return [
            {
                "name": name,
                "subject": f"xnai.v1.task.{presence.agent}.*.*.{name}.*",
                "queue_group": _QUEUE,
                **more(facts),
            }
            for name, facts in presence.skills.items()
        ]

    def _answer(self, frame: Frame, data: bytes) -> None:
        if not frame.reply.startswith(_MAY_BE_ANSWERED):  # whoever asks would speak through us elsewhere
            return
        try:
            self._bus.transport.client.post(frame.reply, data)
        except Unavailable:  # whoever asked has lost the link as well
            return


def _described(facts: SkillFacts) -> Mapping[str, object]:
    return {"metadata": {"input": encode(facts.input).decode(), "output": encode(facts.output).decode()}}


def _counted(facts: SkillFacts) -> Mapping[str, object]:
    """Times are in nanoseconds there."""
    requests = facts.done + facts.failed
    nanoseconds = int(facts.seconds * 1e9)
    return {
        "num_requests": requests,
        "num_errors": facts.failed,
        "last_error": "",
        "processing_time": nanoseconds,
        "average_processing_time": nanoseconds // requests if requests else 0,
    }
