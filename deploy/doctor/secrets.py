"""Secrets: whether others can read them, and whether they can be guessed."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from xnai.bus.keys import SUFFIX, Key
from xnai.bus.locating import ADDRESS_FILE
from xnai.deploy.doctor.finding import Case, Finding, fine, problem
from xnai.deploy.folders import parse_settings
from xnai.deploy.identity.keyring import Keyring
from xnai.deploy.supervisor.agent import agent_name
from xnai.protocol.errors import InvalidSettings, NotAllowed

_FILES = (ADDRESS_FILE, "server/token", "server/nats-server.conf")  # a token is what older stacks had
_FOLDERS, _PUBLIC = ("keys", "tls"), (".pub", ".crt", ".pem")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_SHORTEST = 16  # characters of a token
_COMMON = ("change", "default", "example", "password", "secret", "test", "token", "xnai", "nats", "1234")
_IN_SETTINGS = {"token", "api_key", "password", "secret"}


def readable(case: Case) -> Iterator[Finding]:
    """Whether other users of the machine can read what only we should know."""
    given = case.settings.server.key
    secret = [*_secret_files(case.folder), *([case.project / given] if given else [])]
    wrong = [path for path in secret if path.exists() and path.lstat().st_mode & _OTHERS]
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
    candidates = [folder, *(folder / name for name in _FILES)]
    for name in _FOLDERS:
        candidates += [folder / name, *folder.glob(f"{name}/**/*")]
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


def damaged(case: Case) -> Iterator[Finding]:
    """Whether the list of who is known can be read, and the keys of those who live here."""
    keyring = Keyring(case.folder, agent_name(case.folder))
    if not keyring.folder.is_dir():
        return
    try:
        members = keyring.members()
    except InvalidSettings as error:
        yield problem("keys", str(error), "Without a copy of it: delete it, and start the stack again.")
        return
    wrong = False
    for file in sorted(keyring.folder.glob(f"*{SUFFIX}")):
        try:
            Key(file).check()
        except NotAllowed as error:
            wrong = True
            what, _, do = str(error).partition(". Make")
            yield problem("keys", f"{what.rstrip('.')}.", do and f"Make{do}")
    if not wrong:
        yield fine("keys", f"{len(members)} members are known, and no key is damaged.")
