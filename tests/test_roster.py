"""What cards and ended leases mean, without a broker: nobody is lost who had no chance to renew."""

from __future__ import annotations

import msgspec
import pytest

from xnai.protocol.card import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from xnai.protocol.errors import MalformedMessage
from xnai.protocol.presence import Level, Presence, read_card, with_presence
from xnai.registry.roster import Instance, Kind, Roster

LEASE = 10.0
CARD = AgentCard(
    name="maths",
    description="Arithmetic",
    version="1",
    supported_interfaces=(AgentInterface(url="nats:x", protocol_binding="x", protocol_version="1.0"),),
    capabilities=AgentCapabilities(),
    default_input_modes=("text/plain",),
    default_output_modes=("text/plain",),
    skills=(AgentSkill(id="double", name="double", description="Twice", tags=("fast",)),),
)


def instance(name: str = "one", sequence: int = 1, **more: object) -> Instance:
    presence = Presence(
        agent="maths",
        instance=name,
        host="h",
        pid=1,
        version="1",
        started="2026-01-01T00:00:00Z",
        concurrency=8,
    )
    presence = msgspec.structs.replace(presence, **more)
    return Instance(with_presence(CARD, presence), presence, sequence)


ONE = ("maths", "one")


def kinds(changes: list) -> list[Kind]:  # type: ignore[type-arg]
    return [change.kind for change in changes]


def test_a_card_joins_is_renewed_and_leaves() -> None:
    roster = Roster(LEASE)
    assert kinds(roster.held(instance())) == [Kind.JOINED]
    assert kinds(roster.held(instance(sequence=2))) == [Kind.RENEWED]
    assert kinds(roster.left(ONE)) == [Kind.LEFT]
    assert roster.instances == {}
    assert roster.left(ONE) == []


def test_an_older_card_changes_nothing() -> None:
    roster = Roster(LEASE)
    roster.held(instance(sequence=5))
    assert roster.held(instance(sequence=5)) == []
    assert roster.held(instance(sequence=4)) == []


def test_an_ended_lease_is_believed_at_once_while_nothing_stood_still() -> None:
    roster = Roster(LEASE)
    roster.held(instance())
    assert kinds(roster.ended(ONE, now=100.0)) == [Kind.LOST]


def test_after_a_pause_an_ended_lease_is_believed_a_lease_later() -> None:
    roster = Roster(LEASE)
    roster.held(instance())
    roster.doubt(now=100.0)
    assert roster.ended(ONE, now=101.0) == []
    assert ONE in roster.instances
    assert roster.overdue(now=109.9) == []
    assert kinds(roster.overdue(now=110.0)) == [Kind.LOST]
    assert roster.overdue(now=111.0) == []


def test_whoever_renews_in_that_time_was_never_gone() -> None:
    roster = Roster(LEASE)
    roster.held(instance())
    roster.doubt(now=100.0)
    roster.ended(ONE, now=101.0)
    assert kinds(roster.held(instance(sequence=9))) == [Kind.RENEWED]
    assert roster.overdue(now=200.0) == []


def test_a_goodbye_is_believed_even_then() -> None:
    roster = Roster(LEASE)
    roster.held(instance())
    roster.doubt(now=100.0)
    assert kinds(roster.left(ONE)) == [Kind.LEFT]


def test_what_a_reading_lacks_is_doubtful_for_a_lease() -> None:
    roster = Roster(LEASE)
    roster.held(instance("one"))
    roster.held(instance("two", sequence=2))
    assert kinds(roster.read([instance("two", sequence=2), instance("three", sequence=3)], now=50.0)) == [
        Kind.JOINED
    ]
    assert set(roster.instances) == {ONE, ("maths", "two"), ("maths", "three")}
    assert [change.instance.key for change in roster.overdue(now=60.0)] == [ONE]


def test_a_second_pause_does_not_shorten_the_doubt() -> None:
    roster = Roster(LEASE)
    roster.held(instance())
    roster.doubt(now=100.0)
    roster.ended(ONE, now=100.5)
    roster.read([], now=105.0)
    assert kinds(roster.overdue(now=110.0)) == [Kind.LOST]


def test_a_card_says_what_its_holder_says_of_itself() -> None:
    held = instance(level=Level.LINK, why="It is leaving.", running=3)
    card, presence = read_card(msgspec.json.encode(held.card))
    assert (card.name, presence) == ("maths", held.presence)


@pytest.mark.parametrize("data", [b"", b"{", b"{}", msgspec.json.encode(CARD), b'{"name":1}'])
def test_bytes_that_are_no_held_card_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_card(data)


def test_a_level_reaches_those_before_it() -> None:
    assert Level.PROGRESSING.reaches(Level.PROCESS)
    assert Level.LINK.reaches(Level.LINK)
    assert not Level.LINK.reaches(Level.CONSUMING)
