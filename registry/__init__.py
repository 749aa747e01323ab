"""Finding agents: leased cards, and a local copy of all of them."""

from xnai.registry.holding import hold_card
from xnai.registry.registry import LazyRegistry, Registry, open_registry, read_instances
from xnai.registry.roster import Change, Instance

__all__ = [
    "Change",
    "Instance",
    "LazyRegistry",
    "Registry",
    "hold_card",
    "open_registry",
    "read_instances",
]
