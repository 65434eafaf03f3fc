"""TLS between workers and shards, by setting: certificates are tried before anything connects."""

import ssl
from typing import Final, NamedTuple

from recsys.config.system_config import ParameterServerConfig
from recsys.tls import tls_context

LOOPBACK: Final = "127.0.0.1"  # address of shards on one machine
_SECTION: Final = "parameter_server"


class ShardTls(NamedTuple):
    """Contexts of a shard and of its workers; None without TLS."""

    shard: ssl.SSLContext | None = None
    worker: ssl.SSLContext | None = None


def open_tls(config: ParameterServerConfig, host: str = "") -> ShardTls:
    """Contexts from the files of this machine, once both sides have shaken hands in memory.

    ``host``: the shard's address, which its certificate must name; empty where it isn't known. Raises
    ValueError, with the remedy, for files that can't be used or that the other side would refuse."""
    if not config.tls:
        return ShardTls()
    own = config.cert_file, config.key_file
    shard = tls_context(_SECTION, config.client_ca_file, *own, server=True)
    worker = tls_context(_SECTION, config.ca_file, *own)
    worker.check_hostname = bool(host)
    to_shard, to_worker = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = worker.wrap_bio(to_worker, to_shard, server_hostname=host or None)
    answers = shard.wrap_bio(to_shard, to_worker, server_side=True)
    for side, name in ((asks, "ca_file"), (answers, "client_ca_file")) * 2:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass  # it is the other side's turn
        except ssl.SSLError as error:
            raise ValueError(
                f"{_SECTION}.{name} is {getattr(config, name)!r} and {_SECTION}.cert_file "
                f"{config.cert_file!r}, which would be refused: {error}. Expected a certificate that this "
                f"authority signed, valid now, with {host or 'the address of its machine'} in it"
            ) from None
    worker.check_hostname = True
    return ShardTls(shard, worker)
