"""Certificates made for a test, and a proxy that speaks TLS before a server that doesn't."""

import datetime
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.systems.forwarding_proxy import ForwardingProxy

_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Certificates:
    """PEM files of an authority, and of a certificate with its key for 127.0.0.1, signed by it."""

    ca: Path
    cert: Path
    key: Path


class Authority:
    """An authority that signs certificates, with its own in ``name-ca.pem`` of a folder."""

    def __init__(self, folder: Path, name: str = "test") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        self.file = folder / f"{name}-ca.pem"
        self.file.write_bytes(self._signed(self._name, self._key.public_key(), True, "127.0.0.1", 24))

    def sign(self, folder: Path, name: str, address: str, hours: float = 24) -> "Certificates":
        """Writes a certificate for ``address`` and its key, ``name-cert.pem`` and ``name-key.pem``.

        ``hours``: for which it is valid from now on, negative if it has expired.
        """
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        files = Certificates(self.file, folder / f"{name}-cert.pem", folder / f"{name}-key.pem")
        files.cert.write_bytes(self._signed(subject, key.public_key(), False, address, hours))
        files.key.write_bytes(
            key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return files

    def _signed(
        self, of: x509.Name, key: ec.EllipticCurvePublicKey, is_ca: bool, address: str, hours: float
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        return (
            x509.CertificateBuilder()
            .subject_name(of)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=48))
            .not_valid_after(now + datetime.timedelta(hours=hours))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(_PEM)
        )


def make_certificates(
    folder: Path, name: str = "test", address: str = "127.0.0.1", hours: float = 24
) -> Certificates:
    """A certificate of an authority of its own; ``hours`` as in `Authority.sign`."""
    return Authority(folder, name).sign(folder, name, address, hours)


class TlsProxy(ForwardingProxy):
    """Accepts TLS on 127.0.0.1 and forwards plain bytes; ``clients``: authority that must have signed the
    clients' certificates."""

    def __init__(self, certificates: Certificates, clients: Path | None = None) -> None:
        super().__init__()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.cert, certificates.key)
        if clients is not None:
            self._context.load_verify_locations(clients)
            self._context.verify_mode = ssl.CERT_REQUIRED

    def admit(self, client: socket.socket) -> tuple[socket.socket, socket.socket]:
        return self._context.wrap_socket(client, server_side=True), self.connect()
