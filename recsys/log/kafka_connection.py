"""Connection to Kafka's brokers: addresses, TLS and SASL, and what refuses a wrong one at the start.

A password comes from a file or from the environment, not from the configuration, which is written and shown.
"""

import os
import socket
import ssl
import struct
from contextlib import closing, suppress
from io import BufferedRWPair
from pathlib import Path
from typing import Any, Final

from kafka.cluster import get_ip_port_afi
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.api_header import ResponseClassRegistry

from recsys.log.protocol import Brokers
from recsys.tls import tls_context

PASSWORD: Final = "RECSYS_LOG_PASSWORD"  # environment variable
_ANSWER_BYTES: Final = 1 << 20
_SASL, _VERSIONS, _AUTHENTICATE = 17, 18, 36  # requests


def _keep_response_classes() -> None:
    """Makes kafka-python's table of response classes hold the classes themselves, before the first client.

    kafka-python makes the class of a response's version when the first such response comes, and registers
    it by a weak reference. If two threads make one at the same time, that which is registered may be the one
    that nobody keeps: from then on each such response ends its connection, in all clients of the process
    (ReferenceError).
    """
    table = ResponseClassRegistry._response_class_registry
    table.update({key: _class_of(registered) for key, registered in table.items()})
    ResponseClassRegistry.register_response_class = _register


def _register(response_class: Any) -> None:
    registry = ResponseClassRegistry._response_class_registry
    registry[response_class.API_KEY] = _class_of(response_class)


def _class_of(reference: Any) -> type:
    """The class that a weak proxy stands for."""
    return reference.mro()[0]  # type: ignore[no-any-return]


_keep_response_classes()


def connection_of(config: Brokers, patience_s: float) -> dict[str, Any]:
    """Settings of any client of the brokers. Raises ValueError, with the remedy, for files that can't be read
    and if the first broker that answers refuses the certificate or the user."""
    servers = config.url.removeprefix("kafka://").split(",")
    settings: dict[str, Any] = {
        "bootstrap_servers": servers,
        "request_timeout_ms": int(patience_s * 1000),
        "bootstrap_timeout_ms": int(patience_s * 1000),
        "reconnect_backoff_max_ms": 1_000,
    }
    files = (config.ca_file, config.cert_file, config.key_file)
    context = tls_context("log", *files) if config.tls else None
    is_sasl = config.sasl != "none"
    if context or is_sasl:
        protocol = "SASL_" * is_sasl + ("SSL" if context else "PLAINTEXT")
        settings |= {"security_protocol": protocol, "ssl_context": context}
    if is_sasl:
        settings |= {
            "sasl_mechanism": config.sasl.upper(),
            "sasl_plain_username": config.user,
            "sasl_plain_password": _password(config),
        }
    if context or is_sasl:
        for server in servers:
            with suppress(OSError, EOFError):  # away, or goes: for the client to report
                _check(config, settings, server)
                break
    return settings


def _password(config: Brokers) -> str:
    if not config.password_file:
        if password := os.environ.get(PASSWORD):
            return password
        raise ValueError(
            f"log.sasl is {config.sasl!r}, but there is no password: set log.password_file to a file that "
            f"holds it, or {PASSWORD} in the environment"
        )
    try:
        return Path(config.password_file).read_text().strip()
    except OSError as error:
        raise ValueError(
            f"log.password_file is {config.password_file!r}, which can't be read: {error.strerror}; it must "
            "exist on each machine, for this user"
        ) from None


def _check(config: Brokers, settings: dict[str, Any], server: str) -> None:
    """Signs in at a broker. Raises ValueError if it refuses: clients try again until they say that none
    answers."""
    host, port, _ = get_ip_port_afi(server)
    context, timeout_s = settings["ssl_context"], settings["request_timeout_ms"] / 1000
    with closing(socket.create_connection((host, port), timeout_s)) as raw:
        try:
            sock = context.wrap_socket(raw, server_hostname=host) if context else raw
            stream = sock.makefile("rwb")
            _ask(stream, _VERSIONS, 0, b"")  # needs no user
        except ssl.SSLEOFError:
            raise
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason
            raise ValueError(
                f"log.ca_file is {config.ca_file!r}, log.cert_file {config.cert_file!r}: TLS with {server} "
                f"fails ({reason}). Set ca_file to the authority that signed its certificate, which must "
                "name this host, and cert_file if it asks for one"
            ) from None
        if config.sasl != "none" and (refusal := _refusal(settings, stream)):
            source = f"the file {config.password_file}" if config.password_file else PASSWORD
            raise ValueError(
                f"log.user is {config.user!r} and log.sasl is {config.sasl!r}: {server} refuses them or the "
                f"password in {source} (error {refusal}). Compare all three with the brokers' users"
            )


def _refusal(settings: dict[str, Any], stream: BufferedRWPair) -> int:
    """Kafka's error for the user, 0 for none."""
    name: str = settings["sasl_mechanism"]
    mechanism = get_sasl_mechanism(name)(**settings)
    (error,) = struct.unpack_from(">h", _ask(stream, _SASL, 1, _sized(">h", name.encode())))
    while not error and not mechanism.is_done():
        answer = _ask(stream, _AUTHENTICATE, 0, _sized(">i", mechanism.auth_bytes()))
        error, length = struct.unpack_from(">hh", answer)
        if not error:
            mechanism.receive(answer[8 + max(0, length) :])
    return int(error)


def _ask(stream: BufferedRWPair, request: int, version: int, body: bytes) -> bytes:
    """The answer to a request of Kafka's protocol. Raises EOFError if the connection ends, ssl.SSLError with
    the broker's alert if it refuses: with TLS 1.3 that comes after the handshake, and before or after the
    request is sent."""
    with suppress(OSError):  # the connection has ended already: the alert can still be read
        stream.write(_sized(">i", struct.pack(">hhih", request, version, 0, -1) + body))
        stream.flush()
    size = int.from_bytes(stream.read(4))
    answer = stream.read(size) if 4 <= size <= _ANSWER_BYTES else b""
    if len(answer) != size or not answer:
        raise EOFError("it answers something else than Kafka, or nothing")
    return answer[4:]


def _sized(form: str, data: bytes) -> bytes:
    return struct.pack(form, len(data)) + data
