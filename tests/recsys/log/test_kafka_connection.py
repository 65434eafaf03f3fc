"""Connections to Kafka's brokers: what is refused at the start, with the remedy and without a secret."""

import errno
import gc
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError
from kafka.protocol.admin import CreateTopicsResponse
from kafka.protocol.api_header import ResponseClassRegistry

from recsys.config.log_config import LogConfig
from recsys.log import kafka_connection
from recsys.log.kafka_connection import PASSWORD, connection_of
from tests.support.systems.apache_kafka import ApacheKafka, needs_jars
from tests.support.systems.sasl_proxy import SaslProxy
from tests.support.systems.tls_proxy import Certificates, TlsProxy, make_certificates

pytestmark = pytest.mark.pairs(8)

SECRET = "correct horse"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def echo() -> Iterator[int]:
    """Port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            while True:
                client, _ = listener.accept()
                client.sendall(client.recv(100))
        except OSError:
            return

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def strict(files: Certificates, echo: int) -> Iterator[LogConfig]:
    """A broker that speaks TLS and asks for a certificate."""
    proxy = TlsProxy(files, clients=files.ca)
    proxy.start(echo)
    yield LogConfig(
        f"kafka://127.0.0.1:{proxy.port}",
        tls=True,
        ca_file=str(files.ca),
        cert_file=str(files.cert),
        key_file=str(files.key),
    )
    proxy.close()


def test_without_settings_a_connection_is_plain() -> None:
    settings = connection_of(LogConfig("kafka://127.0.0.1:1,127.0.0.1:2"), 3.0)
    assert settings["bootstrap_servers"] == ["127.0.0.1:1", "127.0.0.1:2"]
    assert "security_protocol" not in settings and settings["request_timeout_ms"] == 3000


def test_the_right_authority_and_certificate_are_accepted(strict: LogConfig) -> None:
    settings = connection_of(strict, 3.0)
    assert settings["security_protocol"] == "SSL" and settings["ssl_context"].check_hostname


def test_a_wrong_authority_is_refused_at_once(strict: LogConfig, tmp_path: Path) -> None:
    other = str(make_certificates(tmp_path, "other").ca)
    with pytest.raises(ValueError, match="log.ca_file is '.*other-ca.pem'.*ca_file to the authority"):
        connection_of(replace(strict, ca_file=other), 3.0)


def test_a_certificate_for_another_host_is_refused(tmp_path: Path, echo: int) -> None:
    elsewhere = make_certificates(tmp_path, address="127.0.0.9")
    proxy = TlsProxy(elsewhere)
    proxy.start(echo)
    config = LogConfig(f"kafka://127.0.0.1:{proxy.port}", tls=True, ca_file=str(elsewhere.ca))
    with pytest.raises(ValueError, match="must name this host"):
        connection_of(config, 3.0)
    proxy.close()


def test_a_client_without_a_certificate_or_with_a_foreign_one_is_refused(
    strict: LogConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="log.cert_file ''.*cert_file if it asks"):
        connection_of(replace(strict, cert_file="", key_file=""), 3.0)
    other = make_certificates(tmp_path, "other")
    with pytest.raises(ValueError, match="log.cert_file .*other-cert.pem"):
        connection_of(replace(strict, cert_file=str(other.cert), key_file=str(other.key)), 3.0)


class RefusingProxy(TlsProxy):
    """Asks for a client's certificate, and notes when it has refused one."""

    def __init__(self, files: Certificates) -> None:
        super().__init__(files, clients=files.ca)
        self.refused = threading.Event()

    def admit(self, client: socket.socket) -> tuple[socket.socket, socket.socket]:
        try:
            return super().admit(client)
        except OSError:
            self.refused.set()
            raise


def test_a_broker_that_refused_before_the_first_request_is_understood(
    files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS 1.3 the client's handshake ends before the broker has seen its certificate."""
    proxy, ask = RefusingProxy(files), kafka_connection._ask
    proxy.start(1)

    def ask_late(*arguments: Any) -> bytes:
        assert proxy.refused.wait(30)
        return ask(*arguments)

    monkeypatch.setattr(kafka_connection, "_ask", ask_late)
    config = LogConfig(f"kafka://127.0.0.1:{proxy.port}", tls=True, ca_file=str(files.ca))
    with pytest.raises(ValueError, match="log.cert_file ''.*CERTIFICATE_REQUIRED.*cert_file if"):
        connection_of(config, 3.0)
    proxy.close()


def test_files_that_cannot_be_read_are_named(strict: LogConfig, files: Certificates) -> None:
    with pytest.raises(ValueError, match="log.ca_file is '/none.pem'.*Expected PEM files"):
        connection_of(replace(strict, ca_file="/none.pem"), 3.0)
    with pytest.raises(ValueError, match="a certificate with its own key"):
        connection_of(replace(strict, key_file=str(files.ca)), 3.0)


def test_brokers_that_are_away_are_left_to_the_client(files: Certificates) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
    closing_port = listener.getsockname()[1]
    url = f"kafka://127.0.0.1:1,127.0.0.1:{closing_port},no-such-host.invalid:1"
    settings = connection_of(LogConfig(url, tls=True, ca_file=str(files.ca)), 3.0)
    assert settings["security_protocol"] == "SSL"
    listener.close()


def test_the_next_broker_is_asked_where_one_has_no_route_and_a_port_may_be_left_out(
    files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unreachable(address: tuple[str, int], timeout_s: float) -> socket.socket:
        asked.append(address)
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    connection_of(LogConfig("kafka://broker,[::1]:9093", tls=True, ca_file=str(files.ca)), 3.0)
    assert asked == [("broker", 9092), ("::1", 9093)]


def sasl_config(mechanism: str = "scram-sha-256", port: int = 1) -> LogConfig:
    return LogConfig(f"kafka://127.0.0.1:{port}", sasl=mechanism, user="me")


def test_the_password_comes_from_a_file_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(ValueError, match=f"no password: set log.password_file.*or {PASSWORD}"):
        connection_of(sasl_config(), 1.0)
    monkeypatch.setenv(PASSWORD, SECRET)
    settings = connection_of(sasl_config(), 1.0)
    assert settings["sasl_plain_password"] == SECRET and settings["sasl_plain_username"] == "me"
    assert settings["sasl_mechanism"] == "SCRAM-SHA-256"
    assert settings["security_protocol"] == "SASL_PLAINTEXT"
    (tmp_path / "password").write_text("from a file\n")
    config = replace(sasl_config(), password_file=str(tmp_path / "password"))
    assert connection_of(config, 1.0)["sasl_plain_password"] == "from a file"
    with pytest.raises(ValueError, match="log.password_file is '/none', which can't be read"):
        connection_of(replace(config, password_file="/none"), 1.0)


@pytest.fixture(scope="module")
def broker() -> Iterator[SaslProxy]:
    from recsys.log.embedded_broker import EmbeddedBroker

    proxy = SaslProxy("me", SECRET, ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
    server = EmbeddedBroker(named_port=proxy.port)
    server.start()
    proxy.start(server.port)
    yield proxy
    server.stop()
    proxy.close()


@pytest.mark.services
@pytest.mark.parametrize("mechanism", ["plain", "scram-sha-256", "scram-sha-512"])
def test_a_user_is_accepted_and_a_wrong_password_refused(
    mechanism: str, broker: SaslProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recsys.log.kafka_log import KafkaLog
    from recsys.log.protocol import Append, LogUnavailable, Topic

    monkeypatch.setenv(PASSWORD, SECRET)
    config = sasl_config(mechanism, broker.port)
    log = KafkaLog(config, patience_s=5)
    log.create(Topic(mechanism))
    assert [r.offset for r in log.read(mechanism, 0, log.append(mechanism, [Append(0, b"", b"1")])[0])] == [0]
    assert set(broker.authenticated[-3:]) == {mechanism.upper()}  # each of its clients
    with monkeypatch.context() as changed:
        changed.setattr(broker, "_password", "a new one")
        with ThreadPoolExecutor(1) as pool, pytest.raises(LogUnavailable, match="at the next start"):
            pool.submit(log.read, mechanism, 0, 0).result()  # by a new connection
    log.close()

    monkeypatch.setenv(PASSWORD, "battery staple")
    with pytest.raises(ValueError, match=f"log.user is 'me' and log.sasl is '{mechanism}'") as refused:
        KafkaLog(config, patience_s=2)
    assert PASSWORD in str(refused.value) and "battery" not in str(refused.value)


@pytest.mark.services
def test_a_mechanism_that_the_broker_lacks_is_refused(
    broker: SaslProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recsys.log.kafka_log import KafkaLog

    monkeypatch.setenv(PASSWORD, SECRET)
    monkeypatch.setattr(broker, "mechanisms", ["PLAIN"])
    with pytest.raises(ValueError, match="log.sasl is 'scram-sha-512'"):
        KafkaLog(sasl_config("scram-sha-512", broker.port), patience_s=2)


@pytest.fixture(scope="module")
def apache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    with ApacheKafka(tmp_path_factory.mktemp("kafka")) as brokers:
        yield brokers


@pytest.mark.services
@needs_jars
def test_apache_kafka_refuses_a_client_without_a_certificate_or_with_a_foreign_one(
    apache: ApacheKafka, tmp_path: Path
) -> None:
    right, other = apache.config("MTLS"), make_certificates(tmp_path, "other")
    assert connection_of(right, 30.0)["security_protocol"] == "SSL"
    with pytest.raises(ValueError, match="log.cert_file ''.*CERTIFICATE_REQUIRED"):
        connection_of(replace(right, cert_file="", key_file=""), 30.0)
    with pytest.raises(ValueError, match="log.cert_file '.*other-cert.pem'.*CERTIFICATE_UNKNOWN"):
        connection_of(replace(right, cert_file=str(other.cert), key_file=str(other.key)), 30.0)
    with pytest.raises(ValueError, match="log.ca_file is '.*other-ca.pem'"):
        connection_of(replace(right, ca_file=str(other.ca)), 30.0)


@pytest.mark.services
@needs_jars
def test_apache_kafka_refuses_a_wrong_user_password_or_mechanism(apache: ApacheKafka, tmp_path: Path) -> None:
    right = apache.config("SASL")
    assert connection_of(right, 30.0)["security_protocol"] == "SASL_SSL"
    (tmp_path / "password").write_text("battery staple")
    with pytest.raises(ValueError, match="the password in the file .*error 58") as refused:
        connection_of(replace(right, password_file=str(tmp_path / "password")), 30.0)
    assert "battery" not in str(refused.value)
    with pytest.raises(ValueError, match="log.user is 'nobody'.*error 58"):
        connection_of(replace(right, user="nobody"), 30.0)
    with pytest.raises(ValueError, match="log.sasl is 'plain'.*error 33"):
        connection_of(replace(right, sasl="plain"), 30.0)


@pytest.mark.services
@needs_jars
def test_apache_kafka_refuses_more_copies_than_it_has_brokers(apache: ApacheKafka) -> None:
    from recsys.log.kafka_log import KafkaLog

    with pytest.raises(ValueError, match="log.replication is 3 .*at most their number"):
        KafkaLog(replace(apache.config(), prefix="more.", replication=3), patience_s=30)


def test_a_log_that_cannot_start_closes_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys.log import kafka_log
    from recsys.log.protocol import LogUnavailable

    closed: list[bool] = []

    class Admin:
        def __init__(self, **_: object) -> None:
            self._manager, self.cluster = self, SimpleNamespace(brokers=lambda: [])

        def close(self) -> None:
            closed.append(True)

        def run(self, *_: object) -> None:
            raise KafkaConnectionError("the broker is gone")

    monkeypatch.setattr(kafka_log, "KafkaAdminClient", Admin)
    with pytest.raises(LogUnavailable, match="the broker is gone"):
        kafka_log.KafkaLog("kafka://127.0.0.1:9", patience_s=0.1)
    assert closed == [True]


def test_a_class_that_another_thread_replaced_stays_registered() -> None:
    first, versions = CreateTopicsResponse[4], CreateTopicsResponse._VERSIONS
    del versions[4]  # as a second thread saw it, which had asked before the first one stored its own
    second = CreateTopicsResponse[4]  # registered last
    versions[4] = first  # stored last
    assert second is not first
    del second
    gc.collect()
    header = SimpleNamespace(request_api_key=CreateTopicsResponse.API_KEY, request_api_version=4)
    assert ResponseClassRegistry.get_response_class(header) is first
