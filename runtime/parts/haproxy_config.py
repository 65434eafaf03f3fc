"""HAProxy's configuration as Ray Serve writes it, changed for a public address.

Serve's own settings allow half-sent requests for an hour and a single client all connections, open the admin
socket to all users and statistics to all machines, and send requests without a replica to a proxy that lets
them wait. ``harden`` changes
lines of the text that the pinned version of Ray writes, and raises ValueError where it doesn't find one.
"""

import re
import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from recsys.config.loader import ConfigError
from recsys.config.system_config import Config
from serving.access.caller import DOOR
from serving.admission.whole_body import MAX_BODY_BYTES

BUFFER_BYTES: Final = 65_536
# Longer bodies go to the replica while they arrive: they outgrow the buffer.
_HELD_BYTES: Final = 60_000
_RETRY_AFTER_S: Final = 1
# Another replica is asked for a list that its replica has not answered by then: the machine may be gone.
_LIST_TIMEOUT: Final = "http-request set-timeout server 2s if { path /v1/recommend }"
_NO_REPLICA: Final = '{"error":"no replica answers: try again in a second","details":[]}'
_UNAVAILABLE: Final = (
    f"return status 503 content-type application/json hdr Retry-After {_RETRY_AFTER_S} string '{_NO_REPLICA}'"
)
_TOO_LARGE: Final = f'{{"error":"the body has more than {MAX_BODY_BYTES} bytes","details":[]}}'
# Answer of HAProxy itself where a replica ends during a request, or none can be reached.
ERROR_PAGE: Final = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    f"Retry-After: {_RETRY_AFTER_S}\r\nContent-Length: {len(_NO_REPLICA)}\r\n\r\n{_NO_REPLICA}"
)


def check_doors(config: Config, has_haproxy: bool = True) -> None:
    """Raises ConfigError for a certificate that can't be read or used, or a proxy that is no address.

    ``has_haproxy``: whether this system starts one.
    """
    for proxy in config.access.proxies:
        try:
            ip_network(proxy)
        except ValueError as why:
            raise ConfigError(f"access.proxies has {proxy!r}, expected addresses: {why}") from None
    file = config.doors.certificate
    if file and not has_haproxy:
        raise ConfigError(
            f"doors.certificate is {file}, but no HAProxy of this system's own answers (on macOS, or on an "
            "existing Ray cluster): leave it empty, and let a proxy of yours speak TLS"
        )
    try:
        if file:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(file, password="")
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"doors.certificate is {file}, expected a PEM file that this user can read, with certificate and "
            f"its private key, without a password ({error}): cat fullchain.pem privkey.pem > both.pem"
        ) from None


def settings(config: Config, connections: int, error_page: Path) -> dict[str, Any]:
    """Fields of Serve's own HAProxy settings. ``connections``: at most so many file descriptors allow."""
    doors = config.doors
    return {
        "maxconn": min(doors.connections, connections),
        "bufsize": BUFFER_BYTES,
        "timeout_client_s": _seconds(doors.idle_s),
        "timeout_http_request_s": _seconds(doors.header_s),
        "timeout_server_s": 60,
        "timeout_queue_s": 2,
        # A refused connection means that the replica is gone: HAProxy need not try it three times.
        "retries": 1,
        "observe_error_limit": 1,
        "health_check_inter": "1s",
        "error_file_path": str(error_page),
    }


def harden(text: str, config: Config, door_key: str) -> str:
    """Changes the configuration: no port but the API's, limits of a source, and 503 without a replica.

    ``door_key`` proves to replicas that HAProxy forwards a request.
    """
    port = config.serve.port
    apps = len(re.findall(r"^backend (?!default_backend$)", text, re.MULTILINE))
    changes = [  # pattern, replacement, and the least and greatest number of places
        ("mode 666 level admin", "mode 600 level admin", 1, 1),
        # Anybody could read them; the admin socket has the same for its owner.
        (r"^frontend prometheus\n(?: .*\n)*", "", 1, 1),
        (r"^listen stats\n(?: .*(?:\n|$))*", "", 1, 1),
        (r"^ *log 127\.0\.0\.1:514 .*\n", "", 1, 1),  # syslog would keep ids in paths beyond erasures
        # Replicas limit the rate of a client's address.
        (r"^( *)option httplog$", r"\1option httplog\n\1option forwardfor", 1, 1),
        (rf"^frontend http_frontend\n *bind \S+:{port}$", _frontend(config, door_key), 1, 1),
        # A label of Ray's metrics: names that clients make up would be series without end.
        (r" method=%HM ", " method=%[var(txn.method)] ", 1, 1),
        # Before the application is deployed.
        (r"http-request return status 404 .*Ping http://.*", f"http-request {_UNAVAILABLE}", 1, 1),
        (r"^backend (\S+)\n *log global$",
         rf"\g<0>\n    http-request {_UNAVAILABLE} if {{ nbsrv(\1) lt 1 }}\n    {_LIST_TIMEOUT}", apps, apps),
        # Serve's own proxy, which lets requests wait until a replica starts; its address arrives later.
        (r"^ *server \S+ \S+ check backup\n", "", 0, apps),
    ]  # fmt: skip
    for pattern, line, least, most in changes:
        text, count = re.subn(pattern, line, text, flags=re.MULTILINE)
        if not least <= count <= most:
            raise ValueError(
                f"HAProxy's configuration by Ray Serve has {count} lines like {pattern!r}, expected {most}: "
                "this version of Ray isn't supported; install the one of requirements/run.lock"
            )
    return text


def _frontend(config: Config, door_key: str) -> str:
    """First lines of the API's frontend, and the table in which connections are counted."""
    doors, certificate = config.doors, config.doors.certificate
    bind = f"bind {config.serve.host}:{config.serve.port}"
    tls = f" ssl crt '{certificate}' ssl-min-ver TLSv1.2 alpn http/1.1" if certificate else ""
    json = "content-type application/json string"
    lines = [
        "backend per_source",
        "    stick-table type ipv6 size 100k expire 60s store conn_cur",
        "frontend http_frontend",
        f"    {bind}{tls}",
        *([f"    bind 127.0.0.1:{doors.local_port}"] if certificate else []),
        "    option disable-h2-upgrade",  # a connection of HTTP/2 has 100 requests at a time
        f"    acl from_proxy src {' '.join(config.access.proxies)}"
        if config.access.proxies
        else "    acl from_proxy always_false",
        # An attacker has a whole /64 of IPv6 addresses.
        "    tcp-request connection track-sc0 src,ipmask(32,64) table per_source",
        f"    tcp-request connection reject if !from_proxy {{ sc0_conn_cur gt {doors.per_source} }}",
        "    http-request set-var(txn.method) method if { method GET HEAD POST PUT PATCH DELETE OPTIONS }",
        f"    http-request return status 413 {json} '{_TOO_LARGE}'"
        f" if {{ req.hdr_val(content-length) gt {MAX_BODY_BYTES} }}",
        f"    http-request wait-for-body time {_seconds(doors.body_s)}s at-least {_HELD_BYTES}"
        " unless METH_GET",
        "    http-request del-header x-forwarded-for unless from_proxy",
        f"    http-request set-header {DOOR} {door_key}",
    ]
    return "\n".join(lines).replace("\\", r"\\")


def _seconds(value: float) -> int:
    return max(1, round(value))
