"""The keys of a stack, `.xnai/keys/`: a seed for each member that lives here, and the list of all members."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from xnai.bus.keys import SUFFIX, Key, make_key
from xnai.bus.locating import JOINED_FILE
from xnai.bus.permissions import Identity, Kind
from xnai.bus.secrets import write_secret
from xnai.protocol.errors import InvalidArgument, InvalidSettings
from xnai.protocol.names import SUPERVISOR, SYSTEM, nearest

FOLDER = "keys"
_LIST = "members.json"
_DRAFT = ".new"


class Member(Identity, frozen=True, kw_only=True, omit_defaults=True):
    """A member as the list has it.

    Attributes:
        by_settings: it is there because `xnai.toml` names it.
        until: seconds since the epoch at which it is a member no more; 0 for no end.
    """

    by_settings: bool = False
    until: float = 0.0


_read_list = msgspec.json.Decoder(list[Member]).decode


class Keyring:
    """The members of one stack; `machine` is what this one is called among those that share a broker."""

    def __init__(self, stack: Path, machine: str) -> None:
        self.folder, self.machine = stack / FOLDER, machine

    @property
    def joined(self) -> bool:
        """Whether the broker is that of another machine."""
        return (self.folder.parent / JOINED_FILE).exists()

    def rotate(self, names: list[str]) -> list[str]:
        """New keys for members that live here, all where none is named, while nobody uses the old ones.

        Raises:
            InvalidArgument: one of the names is nobody's who lives here; or the broker, which would have to
                know of it, is elsewhere.
        """
        if self.joined:
            raise InvalidArgument("The broker of this stack is elsewhere, and must be up for that.")
        chosen = self.residents(names)
        for member in chosen:
            self.put(msgspec.structs.replace(member, keys=(self.make(member.name),)))
        return [member.name for member in chosen]

    def residents(self, names: Sequence[str] = ()) -> list[Member]:
        """Those members who live here and have these names, all where none is named.

        Raises:
            InvalidArgument: one of the names is nobody's who lives here.
        """
        ours = {each.name: each for each in self.members() if each.machine == self.machine}
        for name in names:
            if name not in ours:
                raise InvalidArgument(f"Nobody of this stack is known as {name}{did_you_mean(name, ours)}")
        return [ours[name] for name in dict.fromkeys(names or sorted(ours))]

    def key(self, name: str) -> Key:
        """The key of a member that lives here."""
        return Key(self.folder / f"{name}{SUFFIX}")

    def draft(self, name: str) -> Key:
        """A new key for a member that lives here, beside its old one until `take` puts it into its place."""
        return make_key(self.folder / f"{name}{_DRAFT}")

    def take(self, draft: Key) -> None:
        """Let a draft be the key of its member."""
        draft.file.replace(draft.file.with_suffix(SUFFIX))

    def members(self) -> list[Member]:
        """Everybody whom the broker is to know.

        Raises:
            InvalidSettings: the list cannot be read.
        """
        file = self.folder / _LIST
        try:
            return _read_list(file.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InvalidSettings(
                f"{file} cannot be read: {why}. Put it back as it was; without it only those of xnai.toml, "
                "and whoever starts the stack, are known."
            ) from error

    def find(self, name: str, machine: str | None = None) -> Member | None:
        """A member by its name, and its machine: ours where nothing is said."""
        wanted = name, machine or self.machine
        return next((each for each in self.members() if (each.name, each.machine) == wanted), None)

    def kind_of(self, name: str) -> Kind | None:
        """What holders of a name are, on whatever machine."""
        return next((each.kind for each in self.members() if each.name == name), None)

    def roles_of(self, name: str) -> tuple[str, ...]:
        """What an agent that lives here may serve besides its name."""
        member = self.find(name)
        return member.roles if member else ()

    def give_roles(self, name: str, roles: tuple[str, ...]) -> Member:
        """Let an agent that lives here serve these names besides its own, and no others."""
        known = self.find(name)
        assert known is not None
        member = msgspec.structs.replace(known, roles=roles)
        self.put(member)
        return member

    def put(self, *members: Member) -> None:
        """Write these into the list, in the place of those with their name and machine."""
        table = {(each.name, each.machine): each for each in self.members()}
        table |= {(each.name, each.machine): each for each in members}
        self._write(list(table.values()))

    def remove(self, *members: Member) -> None:
        """Take these from the list; the seeds of those that live here are deleted."""
        gone = {(each.name, each.machine) for each in members}
        self._write([each for each in self.members() if (each.name, each.machine) not in gone])
        for member in members:
            if member.machine == self.machine:
                self.key(member.name).file.unlink(missing_ok=True)

    def make(self, name: str) -> str:
        """A new seed for a member that lives here, in the place of its old one; the public half of it."""
        self._make_folder()
        return make_key(self.key(name).file).public

    def ensure(
        self, name: str, kind: Kind, *, roles: tuple[str, ...] = (), by_settings: bool = False
    ) -> Member:
        """A member that lives here, as it is or new, with a key that can be used.

        Raises:
            InvalidArgument: the name belongs to somebody of another kind.
            NotAllowed: the file of its key holds none.
        """
        if (other := self.kind_of(name)) not in (None, kind):
            raise InvalidArgument(taken(name, other, kind))
        known = self.find(name)
        has_seed = self.key(name).file.exists()
        keys = (self.key(name).public if has_seed else self.make(name),)
        member = Member(
            name=name,
            kind=kind,
            roles=roles or (known.roles if known else ()),
            keys=keys,
            machine=self.machine,
            by_settings=by_settings,
        )
        if member != known:
            self.put(member)
        return member

    def ensure_all(self, *, agents: list[str], people: list[str]) -> None:
        """The members that a stack has from its start: the keeper, the supervisor, its people, its agents.

        Agents that the settings named once, and name no more, are members no more. Whose keys were about to
        change when the stack ended is known by what its file holds.
        """
        self.ensure(SYSTEM, Kind.SYSTEM)
        self.ensure(self.machine, Kind.SUPERVISOR, roles=(SUPERVISOR,))
        for name in dict.fromkeys(people):
            self.ensure(name, Kind.PERSON)
        for name in agents:
            self.ensure(name, Kind.AGENT, by_settings=True)
        old = [
            each
            for each in self.members()
            if each.by_settings and each.machine == self.machine and each.name not in agents
        ]
        if old:
            self.remove(*old)
        for draft in self.folder.glob(f"*{_DRAFT}"):
            draft.unlink(missing_ok=True)
        members = [each for each in self.members() if each.machine == self.machine]
        self.put(*(msgspec.structs.replace(each, keys=self._newest(each)) for each in members))

    def _newest(self, member: Member) -> tuple[str, ...]:
        """The one key that a member has; somebody may have taken its file away, to use it elsewhere."""
        key = self.key(member.name)
        return (key.public,) if key.file.exists() else member.keys[-1:]

    def _write(self, members: list[Member]) -> None:
        self._make_folder()
        text = msgspec.json.format(msgspec.json.encode(sorted(members, key=lambda each: each.name)))
        write_secret(self.folder / _LIST, text.decode())

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)


def taken(name: str, known: Kind | None, wanted: Kind) -> str:
    """What to say where a name belongs to somebody of another kind."""
    is_now, to_be = (f"{'an' if kind is Kind.AGENT else 'a'} {kind}" for kind in (known, wanted))
    return f"{name} is {is_now} already, and cannot be {to_be} as well."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is unknown."""
    meant = nearest(name, known)
    return f": did you mean {meant}?" if meant else "."
