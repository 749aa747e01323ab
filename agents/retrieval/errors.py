"""What can go wrong with the passage store.

    StoreError                      store_unavailable  it cannot be used now; trying again may help
    ├── StoreLocked                 store_locked       another process has the folder open
    ├── StoreMismatch (ValueError)  store_mismatch     made for vectors of another length or model
    └── StoreDamaged                store_damaged      unreadable: move it away and ingest again

Arguments out of range raise `xnai.protocol.InvalidArgument`.
"""

from xnai.protocol import XnaiError


class StoreError(XnaiError):
    """The store cannot be used now: a full disk, a missing right, a server that does not answer."""

    code = "store_unavailable"


class StoreLocked(StoreError):
    """Another process has the folder open. Only one may; several need a server."""

    code = "store_locked"


class StoreMismatch(StoreError, ValueError):
    """The store was made for vectors of another length or of another model."""

    code = "store_mismatch"


class StoreDamaged(StoreError):
    """What the store holds cannot be read. Move the folder away and ingest again."""

    code = "store_damaged"
