"""Tenant keys: 256 bits of randomness, shown once, kept as SHA-256.

A digest without salt or stretching is enough because the secret cannot be guessed (unlike a password); only the
router compares digests, in constant time.
"""

import hashlib
import secrets
from dataclasses import dataclass, field


@dataclass(frozen=True)
class NewKey:
    """A key at the only moment when its secret exists here."""

    id: str
    secret: str = field(repr=False)
    digest: bytes = field(repr=False)


def make_key() -> NewKey:
    """A new key: ``bedsit_<id>_<43 url-safe characters>``."""
    key_id = secrets.token_hex(4)
    secret = f"bedsit_{key_id}_{secrets.token_urlsafe(32)}"
    return NewKey(key_id, secret, hashlib.sha256(secret.encode()).digest())
