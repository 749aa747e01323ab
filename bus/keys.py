"""Keys: an Ed25519 pair in the form of nkeys, its seed in a file that only its owner may read.

Whoever connects signs what the server asks; the seed never leaves the machine that made it.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

from xnai.bus.secrets import write_secret
from xnai.protocol.errors import NotAllowed
from xnai.protocol.names import SYSTEM

if TYPE_CHECKING:
    from nkeys import KeyPair  # type: ignore[import-untyped]

SUFFIX = ".nk"


class Key:
    """The pair whose seed stands in `file`, read each time it is used: it may be another by then."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __repr__(self) -> str:
        return f"Key({str(self.file)!r})"

    @property
    def is_of_the_system(self) -> bool:
        """Whether it is the keeper's, who may do anything."""
        return self.file.stem == SYSTEM

    def check(self) -> None:
        """Raises NotAllowed when it cannot be used."""
        self._pair()

    @property
    def public(self) -> str:
        """The half that anybody may know; raises NotAllowed."""
        public: bytes = self._pair().public_key
        return public.decode()

    def sign(self, nonce: str) -> bytes:
        """What proves that the seed is here; raises NotAllowed."""
        return base64.b64encode(self._pair().sign(nonce.encode()))

    @property
    def seed(self) -> bytes:
        """The half that nobody else knows; raises NotAllowed."""
        seed: bytes = self._pair().seed
        return bytes(seed)

    def _pair(self) -> KeyPair:
        import nkeys  # only those who hold a key need it

        try:
            return nkeys.from_seed(bytearray(self.file.read_bytes().strip()))
        except FileNotFoundError:
            name, folder = self.file.stem, self.file.parent
            raise NotAllowed(
                f"There is no key for {name} in {folder}. Make one with: xnai keys add {name} "
                "(with --agent for an agent)"
            ) from None
        except OSError as error:
            raise NotAllowed(f"The key {self.file} cannot be read: {error.strerror}.") from error
        except (nkeys.NkeysError, ValueError) as error:
            raise NotAllowed(
                f"The file {self.file} holds no key. Make a new one with: xnai keys rotate {self.file.stem}"
            ) from error


def make_key(file: Path) -> Key:
    """A new pair; its seed replaces whatever `file` holds."""
    import nkeys

    seed: bytes = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    write_secret(file, seed.decode())
    return Key(file)
