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

from tests.support.forwarding_proxy import ForwardingProxy


@dataclass(frozen=True)
class Certificates:
    """PEM files of an authority, and of a certificate with its key for 127.0.0.1, signed by it."""

    ca: Path
    cert: Path
    key: Path


def make_certificates(
    folder: Path, name: str = "test", address: str = "127.0.0.1", hours: float = 24
) -> Certificates:
    """``hours``: for which they are valid from now on, negative if they have expired."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)

    def signed(of: x509.Name, own_key: ec.EllipticCurvePrivateKey, is_ca: bool) -> x509.Certificate:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        return (
            x509.CertificateBuilder()
            .subject_name(of)
            .issuer_name(ca_name)
            .public_key(own_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=48))
            .not_valid_after(now + datetime.timedelta(hours=hours))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(names, critical=False)
            .sign(ca_key, hashes.SHA256())
        )

    folder.mkdir(parents=True, exist_ok=True)
    files = Certificates(*(folder / f"{name}-{part}.pem" for part in ("ca", "cert", "key")))
    pem = serialization.Encoding.PEM
    files.ca.write_bytes(signed(ca_name, ca_key, True).public_bytes(pem))
    files.cert.write_bytes(signed(subject, key, False).public_bytes(pem))
    files.key.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


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
