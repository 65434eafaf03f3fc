"""A proxy that asks Kafka's clients for a user by SASL (PLAIN, SCRAM) before a broker that asks for none.

It answers the handshake and the authentication itself, and forwards the rest once the user is proven. Written
from RFC 5802 and Kafka's protocol guide; no broker of another make has judged it.
"""

import base64
import hashlib
import hmac
import secrets
import socket
import struct
import time

from tests.support.systems.forwarding_proxy import ForwardingProxy

HANDSHAKE, API_VERSIONS, AUTHENTICATE = 17, 18, 36
REFUSED = 58
ITERATIONS = 4096


class SaslProxy(ForwardingProxy):
    """Listens on 127.0.0.1 for one user."""

    def __init__(self, user: str, password: str, mechanisms: list[str]) -> None:
        super().__init__()
        self._user, self._password, self.mechanisms = user, password, mechanisms
        self.authenticated: list[str] = []  # mechanism of each proven connection

    def admit(self, client: socket.socket) -> tuple[socket.socket, socket.socket]:
        server = self.connect()
        try:
            self._authenticate(client, server)
        except (OSError, EOFError):
            server.close()
            raise
        return client, server

    def _authenticate(self, client: socket.socket, server: socket.socket) -> None:
        mechanism, scram = "", None
        while True:
            frame = _read(client)
            key, version, number = struct.unpack(">hhi", frame[:8])
            name_end = 10 + max(0, struct.unpack(">h", frame[8:10])[0])
            body = frame[name_end:]
            if key == API_VERSIONS:
                _write(server, frame)
                _write(client, _read(server))
            elif key == HANDSHAKE:
                mechanism = body[2:].decode()
                is_offered = mechanism in self.mechanisms
                names = b"".join(struct.pack(">h", len(m)) + m.encode() for m in self.mechanisms)
                answer = struct.pack(">ihi", number, 0 if is_offered else 33, len(self.mechanisms))
                _write(client, answer + names)
            elif key == AUTHENTICATE:
                # After no tagged fields; the length takes two bytes from 128 on.
                token = body[3 if body[1] > 127 else 2 : -1] if version >= 2 else body[4:]
                if mechanism == "PLAIN":
                    reply: bytes | None = b"" if self._is_plain(token) else None
                elif scram is None:
                    scram = _Scram(self._user, self._password, mechanism)
                    reply = scram.first(token)
                else:
                    reply = scram.final(token)
                _write(client, _answer(number, version, reply))
                if reply is None:
                    # As Kafka does by default (connection.failed.authentication.delay.ms).
                    time.sleep(0.1)
                    raise EOFError
                if mechanism == "PLAIN" or (scram is not None and scram.is_proven):
                    self.authenticated.append(mechanism)
                    return
            else:
                raise EOFError  # another request before the proof

    def _is_plain(self, token: bytes) -> bool:
        return token.split(b"\0")[1:] == [self._user.encode(), self._password.encode()]


class _Scram:
    """The server's side of RFC 5802 for one connection."""

    def __init__(self, user: str, password: str, mechanism: str) -> None:
        self._hash = "sha" + mechanism.rpartition("-")[2]
        self._user, self._salt = user, secrets.token_bytes(16)
        self._salted = hashlib.pbkdf2_hmac(self._hash, password.encode(), self._salt, ITERATIONS)
        self.is_proven = False

    def first(self, token: bytes) -> bytes | None:
        self._client_first = token.removeprefix(b"n,,")
        user, nonce = self._client_first.decode().split(",")[:2]
        if user != f"n={self._user}":
            return None
        salt = base64.b64encode(self._salt).decode()
        self._nonce = nonce + secrets.token_hex(8)
        self._server_first = f"{self._nonce},s={salt},i={ITERATIONS}".encode()
        return self._server_first

    def final(self, token: bytes) -> bytes | None:
        without_proof, _, proof = token.rpartition(b",p=")
        message = b",".join((self._client_first, self._server_first, without_proof))
        client_key = self._hmac(self._salted, b"Client Key")
        stored_key = hashlib.new(self._hash, client_key).digest()
        signature = self._hmac(stored_key, message)
        expected = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        if self._nonce.encode() not in without_proof or base64.b64decode(proof) != expected:
            return None
        self.is_proven = True
        server = self._hmac(self._hmac(self._salted, b"Server Key"), message)
        return b"v=" + base64.b64encode(server)

    def _hmac(self, key: bytes, message: bytes) -> bytes:
        return hmac.digest(key, message, self._hash)


def _answer(number: int, version: int, reply: bytes | None) -> bytes:
    error, text = (0, b"") if reply is not None else (REFUSED, b"no such user or password")
    reply = reply or b""
    if version < 2:
        lifetime = struct.pack(">q", 0) if version else b""
        return (
            struct.pack(">ihh", number, error, len(text))
            + text + struct.pack(">i", len(reply)) + reply + lifetime
        )  # fmt: skip
    return (
        struct.pack(">ibh", number, 0, error) + bytes([len(text) + 1]) + text
        + _varint(len(reply) + 1) + reply + struct.pack(">qb", 0, 0)
    )  # fmt: skip


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])


def _read(sock: socket.socket) -> bytes:
    return _exactly(sock, struct.unpack(">i", _exactly(sock, 4))[0])


def _write(sock: socket.socket, frame: bytes) -> None:
    sock.sendall(struct.pack(">i", len(frame)) + frame)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
