"""TLS contexts of files that a section of the configuration names."""

import ssl


def tls_context(
    section: str, ca_file: str, cert_file: str, key_file: str, *, server: bool = False
) -> ssl.SSLContext:
    """Context of a client, which trusts ``ca_file`` (empty: those that the machine trusts), or of a server,
    whose clients need a certificate signed by ``ca_file`` (empty: none). Raises ValueError, with the remedy,
    for files that can't be used."""
    purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
    try:
        context = ssl.create_default_context(purpose, cafile=ca_file or None)
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None, "")
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(
            f"{section}.{'client_' * server}ca_file is {ca_file!r}, {section}.cert_file {cert_file!r} and "
            f"{section}.key_file {key_file!r}: {error}. Expected PEM files that this user can read, a "
            "certificate with its own key, and no password on the key"
        ) from None
    if server and ca_file:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
