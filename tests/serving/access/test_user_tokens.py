"""User tokens: whose signature counts, for how long, and for which user."""

import hmac
import json
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from recsys.events.control_records import ApiKey
from serving.access.caller import Denied
from serving.access.keyring import Keyring
from serving.access.user_tokens import UserTokens, read_public_key

NOW_MS = 1_790_000_000_000
NOW_S = NOW_MS // 1000
ED, OTHER = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
EC = ec.generate_private_key(ec.SECP256R1())


def pem(private: Any) -> str:
    spki = PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(Encoding.PEM, spki).decode()


KEY = ApiKey(id="app00001", digest="", scopes=[], user_keys=[pem(EC), pem(ED)])


def tokens(key: ApiKey = KEY) -> tuple[UserTokens, Keyring]:
    keyring = Keyring()
    keyring.fold(key)
    return UserTokens(keyring), keyring


def signed(private: Any = ED, algorithm: str = "EdDSA", kid: str = "app00001", **claims: Any) -> str:
    claims = {"sub": "u1", "exp": NOW_S + 600} | claims
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        private,
        algorithm,
        headers={"kid": kid},
    )


@pytest.mark.parametrize(("private", "algorithm"), [(ED, "EdDSA"), (EC, "ES256")])
def test_a_token_of_the_apps_server_names_the_user(private: Any, algorithm: str) -> None:
    judge, _ = tokens()
    for _ in range(2):
        assert judge.check(signed(private, algorithm), NOW_MS) == (KEY, "u1")


@pytest.mark.parametrize(
    "text",
    [
        signed(OTHER), signed(kid="other"), signed(exp=NOW_S), signed(exp=NOW_S + 86_401),
        signed(exp=None), signed(sub=None), signed(sub=""), signed(sub="x" * 257),
        signed(nbf=NOW_S + 5), signed(note="x" * 3_000), signed()[:-4] + "AAAA", "a.b.c", "..",
        jwt.encode({"sub": "u1", "exp": NOW_S + 600}, ED, "EdDSA"),
        jwt.encode({"sub": "u1", "exp": NOW_S + 600}, None, "none", headers={"kid": "app00001"}),
    ],
)  # fmt: skip
def test_no_other_token_is_taken_and_its_refusal_says_nothing_of_it(text: str) -> None:
    with pytest.raises(Denied) as denied:
        tokens()[0].check(text, NOW_MS)
    assert denied.value.status == 401
    assert not any(part and part in str(denied.value) for part in text.split(".") if len(part) > 9)


def test_the_public_key_as_a_secret_signs_nothing() -> None:
    def part(value: Any) -> str:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return urlsafe_b64encode(raw).rstrip(b"=").decode()

    for key in KEY.user_keys:
        head = part({"alg": "HS256", "typ": "JWT", "kid": "app00001"})
        body = head + "." + part({"sub": "u1", "exp": NOW_S + 600})
        mac = part(hmac.digest(key.encode(), body.encode(), "sha256"))
        with pytest.raises(Denied):
            tokens()[0].check(f"{body}.{mac}", NOW_MS)


@pytest.mark.parametrize("exp", ["soon", True, None, float("inf"), float("nan"), -1])
def test_times_of_other_types_are_refused(exp: Any) -> None:
    with pytest.raises(Denied):
        tokens()[0].check(signed(exp=exp), NOW_MS)


def test_a_verified_token_ends_with_its_time_and_with_its_key() -> None:
    judge, keyring = tokens()
    text = signed()
    assert judge.check(text, NOW_MS + 599_999)[1] == "u1"
    with pytest.raises(Denied, match="expired"):
        judge.check(text, NOW_MS + 600_000)
    keyring.fold(ApiKey(id=KEY.id, digest="", scopes=[], user_keys=KEY.user_keys, revoked=True))
    with pytest.raises(Denied, match="no valid API key"):
        judge.check(text, NOW_MS)
    keyring.fold(ApiKey(id=KEY.id, digest="", scopes=[], user_keys=[pem(OTHER)]))
    with pytest.raises(Denied):
        judge.check(text, NOW_MS)


def test_only_keys_that_are_safe_today_are_taken() -> None:
    assert read_public_key(pem(ED)) and read_public_key(pem(EC))
    for private in (rsa.generate_private_key(65_537, 2_048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(ValueError, match="expected Ed25519 or P-256"):
            read_public_key(pem(private))
    with pytest.raises(ValueError):
        read_public_key("no key")
