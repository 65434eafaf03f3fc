"""API keys and the secrets of impression tokens: made, revoked and rotated by an operator."""

import secrets
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from recsys.events.control_records import ApiKey, Control
from recsys.events.records import CONTROL
from recsys.log.protocol import Log
from recsys.process.log_consumer import readable
from recsys.process.part_process import run_folder, write_atomically
from serving.access.key_files import TOKEN_KEYS
from serving.access.keyring import ID_LENGTH, Keyring, digest_of_secret, text_of
from serving.access.scopes import SCOPES
from serving.access.user_tokens import read_public_key
from training.lines.control import append_control

_ID_LETTERS: Final = string.ascii_lowercase + string.digits
_TOKEN_KEYS: Final = 2  # secrets that verify: the newest, and the one before it


def read_keys(log: Log) -> list[ApiKey]:
    """All keys, oldest first; none of them holds its secret."""
    keyring = Keyring()
    for record in readable(log, CONTROL, Control):
        if isinstance(record, ApiKey):
            keyring.fold(record)
    return keyring.keys()


def add_key(
    log: Log, name: str, scopes: Sequence[str], now_ms: int, *, rate: float = 0.0, daily: int = 0,
    days: float = 0.0, user_keys: Sequence[str] = (),
) -> str:  # fmt: skip
    """Makes a key; returns its text, which is stored nowhere. ``user_keys``: PEM texts. Raises ValueError."""
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise ValueError(f"--scope is {', '.join(unknown)}, expected some of {', '.join(SCOPES)}")
    for option, value in (("--rate", rate), ("--daily", daily), ("--days", days)):
        if value < 0:
            raise ValueError(f"{option} is {value}, expected a number of 0 or more; 0 is no limit")
    # Not the texts: a file of a pair has the private key, too, and the log would keep it.
    form = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    pems = [read_public_key(pem).public_bytes(*form).decode() for pem in user_keys]
    id = "".join(secrets.choice(_ID_LETTERS) for _ in range(ID_LENGTH))
    secret = secrets.token_urlsafe(32)
    key = ApiKey(
        id=id, digest=digest_of_secret(secret), scopes=sorted(set(scopes)), name=name, rate=rate,
        daily=daily, user_keys=pems, time_ms=now_ms,
        until_ms=now_ms + int(days * 86_400_000) if days else 0,
    )  # fmt: skip
    append_control(log, key)
    return text_of(id, secret)


def revoke_key(log: Log, id_or_name: str, now_ms: int) -> list[ApiKey]:
    """Revokes the key of this id, or all of this name; returns them. Raises ValueError for none."""
    valid = [key for key in read_keys(log) if id_or_name in (key.id, key.name) and not key.revoked]
    if not valid:
        raise ValueError(f"{id_or_name!r} is no id or name of a valid key: see `recsys keys list`")
    for key in valid:
        append_control(log, msgspec.structs.replace(key, revoked=True, time_ms=now_ms))
    return valid


def rotate_token_keys(state: Path) -> None:
    """Puts a new secret in front. Tokens of the one before it stay valid, older ones don't."""
    file = run_folder(state) / TOKEN_KEYS
    before = file.read_text().split() if file.exists() else []
    lines = [secrets.token_urlsafe(32), *before][:_TOKEN_KEYS]
    write_atomically(file, "\n".join(lines).encode(), sync=True)
