"""Secrets: whether others can read them, and whether they can be guessed."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from xnai.bus.locating import ADDRESS_FILE
from xnai.deploy.doctor.finding import Case, Finding, fine, problem
from xnai.deploy.folders import parse_settings
from xnai.protocol.errors import InvalidSettings

_FILES = (ADDRESS_FILE, "server/token", "server/nats-server.conf")
_KEYS, _PUBLIC = "keys", (".pub", ".crt")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_SHORTEST = 16  # characters of a token
_COMMON = ("change", "default", "example", "password", "secret", "test", "token", "xnai", "nats", "1234")
_IN_SETTINGS = {"token", "api_key", "password", "secret"}


def readable(case: Case) -> Iterator[Finding]:
    """Whether other users of the machine can read what only we should know."""
    wrong = [path for path in _secret_files(case.folder) if path.lstat().st_mode & _OTHERS]
    for path in wrong[:5]:
        mode = "700" if path.is_dir() else "600"
        yield problem("secrets", f"Others may open {path}.", f"chmod {mode} {path}")
    if case.file is not None and _holds_secret(case) and case.file.stat().st_mode & _OTHERS:
        wrong.append(case.file)
        what = f"{case.file} holds a secret, and others may read it."
        yield problem(
            "secrets", what, f"chmod 600 {case.file}, or take it from a variable such as XNAI_TOKEN"
        )
    if not wrong:
        yield fine("secrets", "No secret can be read by others.")


def _secret_files(folder: Path) -> Iterator[Path]:
    candidates = (folder, *(folder / name for name in _FILES), folder / _KEYS, *folder.glob(f"{_KEYS}/**/*"))
    return (path for path in candidates if path.exists() and path.suffix not in _PUBLIC)


def _holds_secret(case: Case) -> bool:
    """Whether the file itself, not a variable above it, names one."""
    try:
        return case.file is not None and _names_secret(parse_settings(case.file))
    except InvalidSettings:  # which another check says
        return False


def _names_secret(value: object) -> bool:
    if isinstance(value, dict):
        return any(
            (key.lower() in _IN_SETTINGS and isinstance(said, str)) or _names_secret(said)
            for key, said in value.items()
        )
    return False


def guessable(case: Case) -> Iterator[Finding]:
    """Whether the token is one that somebody would try; one that we make ourselves is not."""
    token = case.settings.server.token
    if token is None:
        return
    do = "Take it out of [server], and the server makes one; or use 32 letters that nobody chose."
    if len(token) < _SHORTEST:
        yield problem("token", f"The token has {len(token)} characters, and can be guessed.", do)
    elif any(word in token.lower() for word in _COMMON):
        yield problem("token", "The token holds a word that everybody would try first.", do)
    else:
        yield fine("token", "The token is long enough.")
