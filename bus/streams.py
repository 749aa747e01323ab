"""The streams and consumers of wire v1, and what they are told to keep."""

from __future__ import annotations

from typing import Any

import msgspec

from xnai.bus.jetstream import CONSUMER_EXISTS, NANOSECONDS, STREAM_EXISTS, ApiError, JetStream
from xnai.protocol import subjects
from xnai.protocol.names import LANES

ACK_WAIT = 10.0
LEASE = 10.0
DAY = 86_400.0
KEPT_AFTER_THE_END = 7 * DAY
_CREATE = "create"
_CARDS = 64 << 20  # bytes of all agent cards
_LONGEST_LEASES = 30  # after which no card stays: none that was made up can fill the stream for ever
_MARKER = 60.0  # seconds for which the end of a lease stays readable


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much an agent's streams may hold.

    Attributes:
        queue: tasks that may wait for one agent.
        log: bytes of one agent's log.
        blobs: bytes of all large parts together.
        duplicate_window: seconds for which the broker itself remembers the id of a task.
        ack_wait: seconds after which a task whose worker is silent goes to another.
        lease: seconds for which an agent card is believed without a renewal; the broker counts in whole ones.
        replicas: copies in a cluster.
    """

    queue: int = 100_000
    log: int = 1 << 30
    blobs: int = 4 << 30
    duplicate_window: float = 120.0
    ack_wait: float = ACK_WAIT
    lease: float = LEASE
    replicas: int = 1


async def declare_shared(api: JetStream, limits: Limits) -> None:
    """Make the streams that all agents share, where they are missing."""
    await _create(
        api,
        {
            "name": subjects.DEAD_STREAM,
            "subjects": [subjects.DEAD_SUBJECTS],
            "retention": "limits",
            "max_age": _nanoseconds(30 * DAY),
            "max_msgs_per_subject": 1_000,
            "max_bytes": limits.log,
            "discard": "old",
        },
        limits,
    )
    await _create(
        api,
        {
            "name": subjects.BLOB_STREAM,
            "subjects": [subjects.BLOB_SUBJECTS],
            "retention": "limits",
            "max_msgs_per_subject": 1,
            "max_bytes": limits.blobs,
            "discard": "new",
            "allow_direct": True,
            "allow_msg_ttl": True,
        },
        limits,
    )
    await _create(
        api,
        {
            "name": subjects.CARD_STREAM,
            "subjects": [subjects.CARD_SUBJECTS],
            "retention": "limits",
            "max_msgs_per_subject": 1,
            "max_bytes": min(_CARDS, limits.log),
            "discard": "new",
            "max_age": _nanoseconds(_LONGEST_LEASES * max(LEASE, limits.lease)),
            "duplicate_window": _nanoseconds(LEASE),
            "allow_direct": True,
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": _nanoseconds(_MARKER),
            "republish": {"src": subjects.CARD_SUBJECTS, "dest": subjects.ALIVE_SUBJECTS},
        },
        limits,
    )


async def declare_agent(api: JetStream, agent: str, limits: Limits) -> None:
    """Make the queue and the log of an agent, where they are missing: tasks can then wait for it.

    Streams that exist stay as they are: whoever declared them first chose their limits.

    Raises:
        Busy: the server's storage cannot reserve what the limits ask for.
    """
    log = subjects.log(agent)
    await _create(
        api,
        {
            "name": subjects.log_stream(agent),
            "subjects": [log],
            "retention": "limits",
            "max_bytes": limits.log,
            "discard": "new",
            "allow_direct": True,
            "republish": {"src": log, "dest": subjects.live_destination(agent)},
        },
        limits,
    )
    await _create(
        api,
        {
            "name": subjects.task_stream(agent),
            "subjects": [subjects.tasks(agent)],
            "retention": "workqueue",
            "max_msgs": limits.queue,
            "discard": "new",
            "allow_direct": True,
        },
        limits,
    )
    for lane in LANES:
        await declare_consumer(api, agent, lane, limits)


async def declare_consumer(api: JetStream, agent: str, lane: str, limits: Limits) -> None:
    """Make the consumer of one lane, where it is missing.

    `max_deliver` and `max_ack_pending` are unlimited: JetStream keeps an exhausted message for ever and never
    delivers it, and tasks that wait for their next attempt would fill the second and block the rest.
    """
    stream = subjects.task_stream(agent)
    config: dict[str, Any] = {
        "name": lane,
        "durable_name": lane,
        "filter_subject": subjects.tasks(agent, lane=lane),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": _nanoseconds(limits.ack_wait),
        "max_deliver": -1,
        "max_ack_pending": -1,
        "num_replicas": limits.replicas,
    }
    try:
        await api.ask(
            f"CONSUMER.CREATE.{stream}.{lane}.{subjects.tasks(agent, lane=lane)}",
            {"stream_name": stream, "config": config, "action": _CREATE},
        )
    except ApiError as error:
        if error.number != CONSUMER_EXISTS:
            raise


async def ack_wait_of(api: JetStream, agent: str, lane: str) -> float:
    """Seconds after which the broker takes a task from a silent worker, as the lane was declared."""
    info = await api.ask(f"CONSUMER.INFO.{subjects.task_stream(agent)}.{lane}")
    return float(info["config"]["ack_wait"]) / NANOSECONDS


async def _create(api: JetStream, config: dict[str, Any], limits: Limits) -> None:
    window = limits.duplicate_window
    config = {
        "storage": "file",
        "num_replicas": limits.replicas,
        "duplicate_window": _nanoseconds(window),
        **config,
    }
    try:
        await api.ask(f"STREAM.CREATE.{config['name']}", config)
    except ApiError as error:
        if error.number != STREAM_EXISTS:
            raise


def _nanoseconds(seconds: float) -> int:
    return int(seconds * NANOSECONDS)
