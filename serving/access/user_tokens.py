"""User tokens: JWTs that an app's own server signs, so that a browser acts as one user only.

The public key belongs to an API key; nothing on the server could sign one. Claims: ``sub``, the user id, and
``exp``, at most 24 hours ahead; the header's ``kid`` is the id of the API key.
"""

from collections import OrderedDict
from functools import lru_cache
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from recsys.events.control_records import ApiKey
from recsys.events.event_types import MAX_ID_LENGTH
from serving.access.caller import Denied
from serving.access.keyring import Keyring

LONGEST_S: Final = 24 * 3600
_VERIFIED: Final = 20_000
_LONGEST: Final = 2_000  # characters
# The claims' times are checked here, by the clock that is handed in.
_OPTIONS: Any = {
    "require": ["sub", "exp"], "verify_exp": False, "verify_nbf": False, "verify_iat": False,
    "verify_aud": False,
}  # fmt: skip
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


class UserTokens:
    """Verifies user tokens, each signature once."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._verified = OrderedDict[str, tuple[ApiKey, str, float]]()  # its key, user, end in s

    def check(self, text: str, now_ms: int) -> tuple[ApiKey, str]:
        """API key and user of a token. Raises Denied."""
        verified = self._verified.get(text)
        if verified is None or self._keyring.find(verified[0].id, now_ms) is not verified[0]:
            verified = self._verify(text, now_ms)
            self._verified[text] = verified
            if len(self._verified) > _VERIFIED:
                self._verified.popitem(last=False)
        key, user_id, end_s = verified
        if end_s <= now_ms / 1000:
            raise _denied("expired: fetch a new one from the app's server")
        return key, user_id

    def _verify(self, text: str, now_ms: int) -> tuple[ApiKey, str, float]:
        try:
            if len(text) > _LONGEST:
                raise _denied(f"longer than {_LONGEST} characters")
            kid = jwt.get_unverified_header(text).get("kid")
            key = self._keyring.find(kid, now_ms) if isinstance(kid, str) else None
            if key is None or not key.user_keys:
                raise _denied("of no valid API key: its kid must be the id of one with a user key")
            return (key, *_checked(_claims(text, key), now_ms / 1000))
        except jwt.PyJWTError as error:
            raise _denied(f"refused ({type(error).__name__})") from error


def read_public_key(pem: str) -> PublicKey:
    """Public key of a PEM text. Raises ValueError unless it is of Ed25519 or P-256."""
    key = load_pem_public_key(pem.encode())
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key
    raise ValueError(f"the public key is of {type(key).__name__}, expected Ed25519 or P-256")


_cached_public_key = lru_cache(1_000)(read_public_key)


def _claims(text: str, key: ApiKey) -> dict[str, Any]:
    """Claims of a token that one of the key's public keys verifies."""
    failure = jwt.InvalidTokenError("no public key verifies it")
    for pem in key.user_keys:
        public = _cached_public_key(pem)
        algorithm = "EdDSA" if isinstance(public, Ed25519PublicKey) else "ES256"
        try:
            return jwt.decode(text, public, algorithms=[algorithm], options=_OPTIONS)
        except jwt.PyJWTError as error:
            failure = error if isinstance(error, jwt.InvalidTokenError) else failure
    raise failure


def _checked(claims: dict[str, Any], now_s: float) -> tuple[str, float]:
    """User and end of a token's claims."""
    user_id, end_s, begin_s = claims["sub"], claims["exp"], claims.get("nbf", 0)
    if not isinstance(user_id, str) or not 0 < len(user_id) <= MAX_ID_LENGTH:
        raise _denied("without a user: sub must be an id, as text")
    for name, value in (("exp", end_s), ("nbf", begin_s)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _denied(f"wrong: {name} must be seconds since 1970")
    if not now_s < end_s <= now_s + LONGEST_S:
        raise _denied("expired or too long: exp must be within the next 24 hours")
    if begin_s > now_s:
        raise _denied("not valid yet: see its nbf")
    return user_id, float(end_s)


def _denied(why: str) -> Denied:
    return Denied(401, "token", f"the user token is {why}")
