"""The settings of a stack: `xnai.toml`, and `XNAI_*` variables above it. Read once, by whoever starts it.

    [server]                      # our own nats-server; with `url`, an outside broker
    port = 4222                   # otherwise a free one, kept for the next time
    sync_interval = "100ms"       # what a power cut may lose; "always" loses nothing and is slow

    [limits]                      # of each agent
    log = "1GiB"

    [agents.maths]
    module = "examples/maths.py"  # or "package.module:agent"
    concurrency = 8
    replicas = 2                  # processes
    needs = ["inference"]         # is ready before this one starts
    memory = "512MiB"             # drained and started again when it holds nearly as much
    cpu = 0.5                     # of a processor
    env = { TZ = "UTC" }
    settings = { digits = 12 }    # handed to the module's `configure`

    [keeper]
    kept = "7d"                   # how long the log of an ended task stays

    [models]
    hub = "https://huggingface.co"  # where `xnai model get` looks

    [supervisor]
    quick_deaths = 5              # so many, and an agent is given up

Without an `[agents]` table, or without a file, the stack has the three agents of DEFAULT_AGENTS. A variable
is `XNAI_<TABLE>_<KEY>`, for example `XNAI_LIMITS_LOG=2GiB`; `XNAI_URL` and `XNAI_TOKEN` are the broker's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from xnai.bus.keeper import INTERVAL
from xnai.bus.server import ServerOptions
from xnai.bus.streams import KEPT_AFTER_THE_END, Limits
from xnai.deploy.environment import PREFIX
from xnai.deploy.folders import parse_settings
from xnai.deploy.plan import MOST_REPLICAS, Plan, Policy
from xnai.deploy.units import read_duration, read_size
from xnai.protocol.errors import InvalidSettings
from xnai.protocol.names import check_name, nearest

DEFAULT_AGENTS = {name: f"xnai.agents.{name}.agent:agent" for name in ("inference", "curation", "retrieval")}
USUAL_HUB = "https://huggingface.co"
_LIMITS = Limits()
_OPTIONS = ServerOptions()
_POLICY = Policy()
_TABLES = ("server", "limits", "keeper", "models", "supervisor")
_SHORT = {"XNAI_URL": ("server", "url"), "XNAI_TOKEN": ("server", "token")}
_ELSEWHERE = {"XNAI_NAME"}  # the sender's name, which the bus reads

Size = Annotated[int, BeforeValidator(read_size), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(read_duration), Field(gt=0)]
Name = Annotated[str, AfterValidator(lambda name: check_name(name, "agent name"))]
Replicas = Annotated[int, Field(ge=0, le=MOST_REPLICAS)]


class Table(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerTable(Table):
    """The broker: one of our own, or with `url` an outside one, for which only `token` matters beside it."""

    url: str | None = Field(default=None, pattern=r"^(nats|tls|ws|wss)://[^/\s]+$")
    token: str | None = Field(default=None, min_length=1, repr=False)
    host: str = Field(default=_OPTIONS.host, min_length=1)
    tls: bool = False
    certificate: str | None = Field(default=None, min_length=1)
    key: str | None = Field(default=None, min_length=1)
    ca: str | None = Field(default=None, min_length=1)
    port: int = Field(default=_OPTIONS.port, ge=0, le=65_535)
    sync_interval: str = Field(default=_OPTIONS.sync_interval, pattern=r"^(always|\d+(ms|s|m))$")
    max_payload: Size = _OPTIONS.max_payload
    max_file_store: Size | None = None
    binary: str | None = None

    @model_validator(mode="after")
    def _check_tls(self) -> ServerTable:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both, or neither")
        return self

    @property
    def speaks_tls(self) -> bool:
        """Whether our own server is to: where others can reach it, it must."""
        return self.tls or self.certificate is not None or not _is_loopback(self.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class LimitsTable(Table):
    """What each agent's streams may hold: the fields of `xnai.bus.Limits`."""

    queue: int = Field(default=_LIMITS.queue, gt=0)
    log: Size = _LIMITS.log
    blobs: Size = _LIMITS.blobs
    duplicate_window: Seconds = _LIMITS.duplicate_window
    ack_wait: Seconds = _LIMITS.ack_wait
    lease: Annotated[Seconds, Field(ge=1)] = _LIMITS.lease
    replicas: int = Field(default=_LIMITS.replicas, ge=1, le=5)

    def limits(self) -> Limits:
        return Limits(**self.model_dump())


class AgentTable(Table):
    """One agent: what to run, in how many processes, with what, and what becomes of one that ends."""

    module: str | None = Field(default=None, min_length=1)
    concurrency: int | None = Field(default=None, ge=1)
    replicas: Replicas = 1
    alone: bool = False
    needs: tuple[Name, ...] = ()
    restart: Literal["always", "on_failure", "never"] = "always"
    memory: Size | None = None
    cpu: Annotated[float, Field(ge=0.01, le=1024, allow_inf_nan=False)] | None = None
    cwd: str | None = Field(default=None, min_length=1)
    nice: int | None = Field(default=None, ge=-20, le=19)
    oom_score_adj: int | None = Field(default=None, ge=-1000, le=1000)
    env: dict[str, str] = {}
    settings: dict[str, Any] = {}


class KeeperTable(Table):
    """How often the keeper looks, and how long the log of an ended task stays."""

    interval: Seconds = INTERVAL
    kept: Seconds = KEPT_AFTER_THE_END


class ModelsTable(Table):
    """Where `xnai model get` looks, and what it shows there."""

    hub: str = Field(default=USUAL_HUB, pattern=r"^https?://[^/\s]+(/[^\s]*)?$")
    token: str | None = Field(default=None, min_length=1, repr=False)


class SupervisorTable(Table):
    """What `xnai up` does with agents that die, that are to leave, and with what they print."""

    quick_deaths: int = Field(default=_POLICY.quick_deaths, ge=1)
    quick: Seconds = _POLICY.quick
    first_delay: Seconds = _POLICY.first_delay
    longest_delay: Seconds = _POLICY.longest_delay
    stop_timeout: Seconds = _POLICY.stop_timeout
    log_size: Size = _POLICY.log_size
    log_files: int = Field(default=_POLICY.log_files, ge=1)


class Settings(Table):
    """All of it."""

    server: ServerTable = ServerTable()
    limits: LimitsTable = LimitsTable()
    agents: dict[Name, AgentTable] = Field(
        default_factory=lambda: {name: _completed(name, AgentTable()) for name in DEFAULT_AGENTS}
    )
    keeper: KeeperTable = KeeperTable()
    models: ModelsTable = ModelsTable()
    supervisor: SupervisorTable = SupervisorTable()

    @field_validator("agents")
    @classmethod
    def _complete(cls, agents: dict[str, AgentTable]) -> dict[str, AgentTable]:
        for name, agent in agents.items():
            if agent.module is None and name not in DEFAULT_AGENTS:
                raise ValueError(f'{name} needs a module, for example module = "{name}.py"')
        complete = {name: _completed(name, agent) for name, agent in agents.items()}
        for name, agent in complete.items():
            if agent.alone and agent.replicas > 1:
                raise ValueError(f"{name} is to be alone, and has {agent.replicas} replicas")
        _check_needs({name: agent.needs for name, agent in complete.items()})
        return complete

    def plan(self) -> Plan:
        """The same without the model."""
        tables = self.model_dump(exclude={"models"})  # which no process of the stack reads
        tables["server"]["tls"] = self.server.speaks_tls
        return msgspec.convert(tables, Plan)


def _check_needs(needs: Mapping[str, Sequence[str]]) -> None:
    for name, others in needs.items():
        for other in others:
            if other not in needs:
                raise ValueError(f"{name} needs {other}, which is not there.{_hint(other, needs)}")
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise ValueError(f"{circle}: none of them could start") from None


def _completed(name: str, agent: AgentTable) -> AgentTable:
    """With the module of an agent of ours; one process at a time may have the folder of passages open."""
    folder_of_passages = name == "retrieval" and agent.module is None and not agent.settings.get("url")
    return agent.model_copy(
        update={"module": agent.module or DEFAULT_AGENTS[name], "alone": agent.alone or folder_of_passages}
    )


def read_settings(file: Path | None, variables: Mapping[str, str]) -> Settings:
    """The settings in `file`, with those of `variables` above them; the defaults where neither says anything.

    Raises:
        InvalidSettings: one cannot be used; the sentence names the file or the variable, the place and
            the reason.
    """
    tables = parse_settings(file) if file else {}
    sources = _lay_above(tables, variables)
    try:
        return Settings.model_validate(tables)
    except ValidationError as error:
        raise InvalidSettings(_sentence(error, file, sources)) from None


def _lay_above(tables: dict[str, Any], variables: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Put variables into `tables`; returns which of them stands where."""
    places = dict(_SHORT)
    for table in _TABLES:
        kind: type[Table] = Settings.model_fields[table].annotation  # type: ignore[assignment]
        places |= {f"{PREFIX}{table}_{key}".upper(): (table, key) for key in kind.model_fields}
    sources = {}
    for name, value in variables.items():
        if name in _ELSEWHERE:
            continue
        if name not in places:
            raise InvalidSettings(f"{name} is no variable that is known here.{_hint(name, places)}")
        table, key = places[name]
        if not isinstance(tables.setdefault(table, {}), dict):
            continue  # the file is wrong there, which is said below
        tables[table][key] = value
        sources[table, key] = name
    return sources


def _sentence(error: ValidationError, file: Path | None, sources: Mapping[tuple[str, str], str]) -> str:
    """The first thing that is wrong, where, and why."""
    first, *others = error.errors(include_url=False)
    place = [str(step) for step in first["loc"] if step != "[key]"]
    if first["type"] == "extra_forbidden":
        reason = f"there is no such key.{_hint(place[-1], _keys(place[:-1]))}"
    else:
        reason = first["msg"].removeprefix("Value error, ").rstrip(".")
        reason += "" if reason.endswith("?") else "."
    variable = sources.get((place[0], place[-1]))
    where = variable or f"{file}, {'.'.join(place)}"
    more = f" ({len(others)} more)" if others else ""
    return f"{where}: {reason[0].lower()}{reason[1:]}{more}"


def _keys(place: Sequence[str]) -> list[str]:
    """The keys that may stand in the table at `place`."""
    kind: type[Table] = Settings
    if place:
        kind = AgentTable if place[0] == "agents" else Settings.model_fields[place[0]].annotation  # type: ignore[assignment]
    return list(kind.model_fields)


def _hint(said: str, known: Sequence[str] | Mapping[str, object]) -> str:
    meant = nearest(said, known)
    return f" Did you mean {meant}?" if meant else f" Known are {', '.join(known)}."
