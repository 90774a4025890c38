"""Removes keys from all text that leaves the program: logs, messages, tables, configurations."""

from __future__ import annotations

import os
import re

REMOVED = "[removed]"

SHORTEST = 8
"""Shorter values are no keys, and stand in any text."""

_SECRET_NAME = re.compile(
    "KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|AUTH(?!OR)|COOKIE|SIGNATURE|CONNECTION_STRING", re.IGNORECASE
)
_LIKE_A_KEY = re.compile(r"[^\s/\\]{16,}")
_URL = re.compile(r"\b([a-z][a-z0-9+.-]{1,20}://)([^\s\"'<>\\]+)", re.I)
_SECRET_FIELD = re.compile(
    r"([?&;][^=&;#]*(?:key|token|secret|passw|sig|auth|credential|code)[^=&;#]*=)[^&;#]*", re.IGNORECASE
)
_HEADER = re.compile(r"\b((?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}")

_named: dict[str, str] = {}


def remember(name: str) -> None:
    """Declares that an environment variable holds a key, whatever its name, if its value can be one: a path is none."""
    value = os.environ.get(name, "").strip()
    if _LIKE_A_KEY.fullmatch(value):
        _named[value] = name


def remember_key(name: str) -> None:
    """Declares that an environment variable holds a key."""
    value = os.environ.get(name, "").strip()
    if len(value) >= SHORTEST:
        _named[value] = name


def secrets() -> dict[str, str]:
    """The keys that are known, longest first, and the variable of each: all variables with such a name, and those
    declared by ``remember``."""
    found = dict(_named)
    for name, value in os.environ.items():
        if len(value.strip()) >= SHORTEST and _SECRET_NAME.search(name) and not os.path.exists(value):
            found.setdefault(value.strip(), name)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def redact(text: str) -> str:
    """The text without keys: the known ones, user names and passwords of addresses, fields and fragments of addresses
    that hold keys, and what follows ``Bearer``. Redact before you cut: half a key is found nowhere."""
    for secret in secrets():
        text = text.replace(secret, REMOVED)
    if "://" in text:
        text = _URL.sub(lambda match: match[1] + _redacted_address(match[2]), text)
    return _HEADER.sub(rf"\1{REMOVED}", text)


def _redacted_address(address: str) -> str:
    address, hash_sign, fragment = address.partition("#")
    authority, slash, rest = address.partition("/")
    user, at, host = authority.rpartition("@")
    authority = f"{REMOVED}@{host}" if at and user else authority
    address = _SECRET_FIELD.sub(rf"\1{REMOVED}", authority + slash + rest)
    kept = fragment if not re.search(r"=|key|token|secret", fragment, re.IGNORECASE) else REMOVED
    return address + hash_sign + kept
