"""`xnai keys`: who is known to the broker, by which keys."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnai.deploy.arguments import duration
from xnai.deploy.output import say, show
from xnai.deploy.statuses import Status

if TYPE_CHECKING:
    from xnai.bus.locating import Address
    from xnai.deploy.identity.keyring import Keyring, Member

_EXAMPLES = """\
examples:
  xnai keys                        # who is known
  xnai keys add alice              # a person; then XNAI_NAME=alice xnai call …
  xnai keys add maths --agent      # an agent that xnai.toml does not name
  xnai keys rotate                 # new keys for all who live here; nothing is lost
  xnai keys revoke alice           # her links are cut
  xnai keys invite --host bus.lan  # a word with which another machine may join, once
"""
_NO_KEYS = (
    "This broker lets in whoever shows its token, and knows no keys; or XNAI_KEY names one key, no folder."
)
_COLUMNS = ("NAME", "KIND", "ROLES", "MACHINE", "KEYS")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "keys",
        help="show, add, renew and revoke the keys of agents and people",
        description=(
            "Each agent and each person has a key of its own, in .xnai/keys, and may do with it what it is "
            "there for and nothing else."
        ),
        epilog=_EXAMPLES,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="who is known (without an action, too)")
    adding = actions.add_parser("add", help="let somebody in")
    adding.add_argument("name", metavar="NAME")
    adding.add_argument("--agent", action="store_true", help="an agent, not a person")
    rotating = actions.add_parser("rotate", help="new keys, for all who live here or for some")
    rotating.add_argument("names", metavar="NAME", nargs="*")
    revoking = actions.add_parser("revoke", help="let somebody in no more")
    revoking.add_argument("name", metavar="NAME")
    revoking.add_argument("--machine", help="only the one who lives there")
    inviting = actions.add_parser("invite", help="print an invitation for another machine")
    inviting.add_argument("--host", help="where that machine finds this one, if not as this one says")
    inviting.add_argument(
        "--for",
        dest="valid",
        type=duration,
        default=3600.0,
        metavar="TIME",
        help="how long it may be used; default: 1h",
    )


async def run(arguments: argparse.Namespace) -> int:
    action = arguments.action or "list"
    status: int = await _ACTIONS[action](arguments)
    return status


async def _list(arguments: argparse.Namespace) -> int:
    from xnai.deploy.identity.asking import ask
    from xnai.deploy.identity.orders import Everybody
    from xnai.deploy.table import table

    at, keyring = _here()
    members = await ask(at, Everybody()) if at else keyring.members()
    members.sort(key=lambda each: (each.kind, each.name, each.machine))
    if arguments.json:
        show([_facts(each) for each in members], as_json=True)
    else:
        rows = ((m.name, m.kind, " ".join(m.roles) or None, m.machine, len(m.keys)) for m in members)
        table(rows, _COLUMNS, sys.stdout)
    return Status.DONE


async def _add(arguments: argparse.Namespace) -> int:
    from xnai.bus.permissions import Kind
    from xnai.deploy.identity.asking import introduce
    from xnai.protocol.errors import NotAllowed

    kind = Kind.AGENT if arguments.agent else Kind.PERSON
    member = await introduce(arguments.name, kind=kind)
    if member is None:
        raise NotAllowed(_NO_KEYS)
    show(_facts(member) if arguments.json else f"{member.name} is known", as_json=arguments.json)
    return Status.DONE


async def _rotate(arguments: argparse.Namespace) -> int:
    from xnai.deploy.identity.asking import ask, rotate_joined
    from xnai.deploy.identity.orders import Rotate

    at, keyring = _here()
    if at is None:
        names = _rotate_alone(keyring, arguments.names)
    elif keyring.joined:
        names = await rotate_joined(at, keyring, arguments.names)
    else:
        names = [member.name for member in await ask(at, Rotate(arguments.names))]
    show(names if arguments.json else f"new keys: {', '.join(names)}", as_json=arguments.json)
    return Status.DONE


def _rotate_alone(keyring: Keyring, names: list[str]) -> list[str]:
    """While the stack is down nobody is there who could notice."""
    from xnai.deploy.stack import Stack

    with Stack(keyring.folder.parent).locked():
        return keyring.rotate(names)


async def _revoke(arguments: argparse.Namespace) -> int:
    from xnai.deploy.identity.asking import ask
    from xnai.deploy.identity.orders import Revoke

    gone = await ask(_up(), Revoke(arguments.name, arguments.machine))
    show([_facts(each) for each in gone] if arguments.json else _words(gone), as_json=arguments.json)
    return Status.DONE


def _words(gone: list[Member]) -> str:
    return "\n".join(f"{each.name} on {each.machine} is known no more" for each in gone)


async def _invite(arguments: argparse.Namespace) -> int:
    from xnai.deploy.identity.asking import invite
    from xnai.deploy.identity.joining import as_text
    from xnai.deploy.units import span

    at = _up()
    invitation = await invite(at, arguments.valid)
    word = as_text(_at_host(invitation, arguments.host) if arguments.host else invitation)
    show({"invitation": word} if arguments.json else word, as_json=arguments.json)
    say(f"It may be used once, within {span(arguments.valid)}, on the other machine: xnai join -")
    if at.ca is None and at.url.startswith("nats:"):
        say("This broker speaks no TLS and listens on this machine alone; see `host` and `tls` in [server].")
    return Status.DONE


def _at_host(invitation: Any, host: str) -> Any:
    import msgspec

    scheme, _, rest = invitation.url.partition("://")
    port = rest.rpartition(":")[2]
    name = f"[{host}]" if ":" in host else host
    return msgspec.structs.replace(invitation, url=f"{scheme}://{name}:{port}")


def _here() -> tuple[Address | None, Keyring]:
    """The broker of this folder's stack, if it is up or elsewhere, and its keys."""
    from xnai.deploy.folders import stack_folder
    from xnai.deploy.identity.keyring import Keyring
    from xnai.deploy.supervisor.agent import agent_name
    from xnai.protocol.errors import NoBus

    folder = stack_folder(Path.cwd())
    keyring = Keyring(folder, agent_name(folder))
    try:
        at = _up()
    except NoBus:
        if not keyring.folder.exists():
            raise
        return None, keyring
    return at, keyring


def _up() -> Address:
    """Where the broker is; that of a stack that was killed is not there."""
    from xnai.bus.locating import JOINED_FILE, find_bus
    from xnai.deploy.folders import stack_folder
    from xnai.deploy.stack import Stack
    from xnai.protocol.errors import NoBus, NotAllowed

    at, folder = find_bus(Path.cwd()), stack_folder(Path.cwd())
    if at.key is None:
        raise NotAllowed(_NO_KEYS)
    is_own = at.key == str(folder / "keys") and not (folder / JOINED_FILE).exists()
    if is_own and Stack(folder).holder() is None:
        raise NoBus(f"No bus is up in {folder.parent}. Start one with: xnai up")
    return at


def _facts(member: Member) -> dict[str, object]:
    return {
        "name": member.name,
        "kind": member.kind,
        "roles": list(member.roles),
        "machine": member.machine,
        "keys": list(member.keys),
    }


_ACTIONS = {"list": _list, "add": _add, "rotate": _rotate, "revoke": _revoke, "invite": _invite}
