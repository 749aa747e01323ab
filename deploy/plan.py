"""What a stack is to be, as its settings say: checked, and light enough to be held for months."""

from __future__ import annotations

from typing import Any

import msgspec

from xnai.bus import Limits, ServerOptions

MOST_REPLICAS = 64

# A key that the model of the settings has and one of these lacks is an error, so that none is forgotten.


class ServerPlan(ServerOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Our own server, or with `url` an outside one, for which only `token` and `ca` matter beside it.

    Attributes:
        tls: whether our own is to speak TLS.
        ca: a file with the certificate of who vouches for it.
    """

    url: str | None = None
    tls: bool = False
    ca: str | None = None


class AgentPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One agent: the keys of its table in `xnai.toml`."""

    module: str
    concurrency: int | None = None
    replicas: int = 1
    alone: bool = False
    needs: tuple[str, ...] = ()
    restart: str = "always"
    memory: int | None = None
    cpu: float | None = None
    cwd: str | None = None
    nice: int | None = None
    oom_score_adj: int | None = None
    env: dict[str, str] = {}
    settings: dict[str, Any] = {}


class Keeping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often the keeper looks, and how long the log of an ended task stays; in seconds."""

    interval: float
    kept: float


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of agents that die or are to leave, and of what they print; seconds and bytes."""

    quick_deaths: int = 5
    quick: float = 60.0
    first_delay: float = 1.0
    longest_delay: float = 30.0
    stop_timeout: float = 20.0
    log_size: int = 10 << 20
    log_files: int = 5


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it, table by table."""

    server: ServerPlan
    limits: Limits
    agents: dict[str, AgentPlan]
    keeper: Keeping
    supervisor: Policy
