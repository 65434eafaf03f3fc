"""HAProxy's configuration: each line that protects the API is there, and a text that another version of Ray
writes is refused instead of left as it is."""

import inspect
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.config.loader import ConfigError
from recsys.config.system_config import Config
from runtime.parts.haproxy_config import ERROR_PAGE, check_doors, harden, settings
from runtime.supervision.ray_environment import haproxy
from tests.support.systems.haproxy_text import PORT, written_by_serve
from tests.support.systems.tls_proxy import make_certificates

# of Ray, which uses pydantic as it was
KEY = "d" * 43
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def config(host: str = "127.0.0.1", proxies: tuple[str, ...] = ("127.0.0.1",), **doors: object) -> Config:
    made = Config()
    return replace(
        made,
        serve=replace(made.serve, host=host, port=PORT),
        access=replace(made.access, proxies=proxies),
        doors=replace(made.doors, **doors),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("serve")
    return written_by_serve(folder, **settings(config(), 10**6, folder / "503.http"))


def section(text: str, name: str) -> list[str]:
    """Lines of a section, without comments."""
    body = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    lines = next(part for part in body if part.startswith(name)).splitlines()
    return [line.strip() for line in lines if not line.strip().startswith("#")]


def binds(text: str) -> list[str]:
    return re.findall(r"^ *bind (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "192.0.2.7", "::", "feed.example"])
def test_the_api_has_haproxys_only_port(text: str, host: str) -> None:
    assert binds(text) == [f":{PORT + 2}", f"127.0.0.1:{PORT}", f"*:{PORT + 1}"]
    hard = harden(text, config(host), KEY)
    assert binds(hard) == [f"{host}:{PORT}"]
    assert "stats uri" not in hard and "prometheus-exporter" not in hard and "use_backend" in hard


def test_a_certificate_makes_https_and_a_loopback_port_for_tools(text: str) -> None:
    tls = config("0.0.0.0", certificate="/etc/a b.pem", local_port=20_007)
    assert binds(harden(text, tls, KEY)) == [
        f"0.0.0.0:{PORT} ssl crt '/etc/a b.pem' ssl-min-ver TLSv1.2 alpn http/1.1",
        "127.0.0.1:20007",
    ]


def test_limits_of_a_source_come_before_any_other_rule(text: str) -> None:
    hard = harden(text, config(proxies=("10.0.0.1", "192.168.0.0/24"), per_source=64, body_s=2.6), KEY)
    lines = section(hard, "frontend http_frontend")
    rules = [line for line in lines if line.startswith(("acl", "tcp-request", "http-request"))]
    assert rules[:3] == [
        "acl from_proxy src 10.0.0.1 192.168.0.0/24",
        "tcp-request connection track-sc0 src,ipmask(32,64) table per_source",
        "tcp-request connection reject if !from_proxy { sc0_conn_cur gt 64 }",
    ]
    assert rules[3].startswith("http-request set-var(txn.method) method if { method GET ")
    assert rules[4].startswith("http-request return status 413")
    assert rules[5:8] == [
        "http-request wait-for-body time 3s at-least 60000 unless METH_GET",
        "http-request del-header x-forwarded-for unless from_proxy",
        f"http-request set-header x-recsys-door {KEY}",
    ]
    assert "option disable-h2-upgrade" in lines  # 100 requests of one connection would count as one
    assert "option forwardfor" in section(hard, "defaults")
    assert "acl from_proxy always_false" in harden(text, config(proxies=()), KEY)


def test_times_and_counts_are_those_of_the_doors(tmp_path: Path) -> None:
    doors = config(header_s=3.0, idle_s=0.2, connections=500)
    text = written_by_serve(tmp_path, **settings(doors, 400, tmp_path / "503.http"))
    assert {"maxconn 400", "tune.bufsize 65536"} <= set(section(text, "global"))
    assert {"timeout http-request 3s", "timeout client 1s", "timeout server 60s", "retries 1"} <= set(
        section(text, "defaults")
    )
    assert "error-limit 1 on-error mark-down" in text and "inter 1s" in text


def test_without_a_replica_the_answer_is_503_at_once_and_no_other_proxy_is_asked(text: str) -> None:
    hard = harden(text, config(), KEY)
    assert "backup" in text and "backup" not in hard
    unavailable = "http-request return status 503 content-type application/json hdr Retry-After 1 string"
    app, none = section(hard, "backend http-recsys"), section(hard, "backend default_backend")
    assert app[2].startswith(unavailable) and app[2].endswith("if { nbsrv(http-recsys) lt 1 }")
    assert app[3] == "http-request set-timeout server 2s if { path /v1/recommend }"
    assert len(none) == 2 and none[1].startswith(unavailable)
    head, body = ERROR_PAGE.split("\r\n\r\n")
    assert "Retry-After: 1" in head and f"Content-Length: {len(body)}" in head


def test_only_the_owner_reaches_the_admin_socket(text: str) -> None:
    assert "mode 666" in text and "mode 6" not in harden(text, config(), KEY).replace("mode 600", "")


def test_paths_with_ids_do_not_go_to_syslog(text: str) -> None:
    targets = re.findall(r"^ *log (\S+)", harden(text, config(), KEY), re.MULTILINE)
    assert {Path(target).name for target in targets} == {"global", "m.sock"}


def test_an_application_that_is_not_deployed_yet(tmp_path: Path) -> None:
    text = written_by_serve(tmp_path, is_deployed=False)
    assert "404" not in section(harden(text, config(), KEY), "backend default_backend")[1]


@pytest.mark.parametrize(
    "gone",
    [
        "mode 666",
        "option httplog",
        "method=%HM",
        "log 127.0.0.1:514",
        f":{PORT}\n",
        "status 404",
        "    log global\n    # Enable",
    ],
)
def test_a_text_of_another_version_of_ray_is_refused(text: str, gone: str) -> None:
    with pytest.raises(ValueError, match="this version of Ray isn't supported; install the one of"):
        harden(text.replace(gone, "\n"), config(), KEY)


@pytest.mark.skipif(not haproxy(), reason="no HAProxy on this platform")
@pytest.mark.parametrize("is_deployed", [True, False])
def test_haproxy_accepts_it(tmp_path: Path, is_deployed: bool) -> None:
    page = tmp_path / "503.http"
    page.write_text(ERROR_PAGE)
    text = written_by_serve(tmp_path, is_deployed=is_deployed, **settings(config(), 1000, page))
    file = tmp_path / "haproxy.cfg"
    file.write_text(harden(text, config(proxies=("10.0.0.1", "fd00::/8")), KEY))
    ran = subprocess.run([haproxy(), "-c", "-f", file], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_methods_that_revival_overrides_exist_in_the_installed_ray() -> None:
    from ray.serve._private.haproxy import HAProxyApi

    for name in ("_start_and_wait_for_haproxy", "_graceful_reload", "stop"):
        assert inspect.iscoroutinefunction(getattr(HAProxyApi, name)), name
    assert inspect.isfunction(HAProxyApi._generate_config_file_internal)
    assert "self._proc" in inspect.getsource(HAProxyApi.start)


def test_a_certificate_without_its_key_and_a_proxy_by_name_are_refused(tmp_path: Path) -> None:
    check_doors(config())
    file = tmp_path / "cert.pem"
    own, other = (make_certificates(tmp_path / name) for name in ("own", "other"))
    wrong = (
        None,
        "-----BEGIN CERTIFICATE-----",
        own.cert.read_text(),
        own.cert.read_text() + other.key.read_text(),
    )
    for text in wrong:
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigError, match="doors.certificate is .*cat fullchain"):
            check_doors(config(certificate=str(file)))
    file.write_text(own.key.read_text() + own.cert.read_text())
    check_doors(config(certificate=str(file)))
    with pytest.raises(ConfigError, match="let a proxy of yours speak TLS"):
        check_doors(config(certificate=str(file)), has_haproxy=False)
    with pytest.raises(ConfigError, match="access.proxies has 'proxy.local', expected addresses"):
        check_doors(config(proxies=("proxy.local",)))
