"""TLS on shards' sockets: trusted peers get the same rows, others are refused and delay nobody."""

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parameter_server.rpc import transport
from parameter_server.rpc.parameter_client import LocalClient, WorkerId, hello
from parameter_server.rpc.protocol import AppliedQuery, Frame
from parameter_server.rpc.shard_tls import ShardTls, open_tls
from parameter_server.rpc.transport import SocketChannel, SocketServer, receive, send
from parameter_server.shard.shard import digest_of_shards
from recsys.config.system_config import ParameterServerConfig
from tests.support.parameter_server.shard_servers import TOKEN, Servers
from tests.support.parameter_server.small_line import DENSE, LANES, toy_spec, work
from tests.support.systems.tls_proxy import Certificates, make_certificates

HOST, STEPS, ALL = "127.0.0.1", 12, list(range(LANES))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"), "other")


def settings(files: Certificates, **changes: str) -> ParameterServerConfig:
    names = {"ca_file": str(files.ca), "cert_file": str(files.cert), "key_file": str(files.key)}
    return ParameterServerConfig(tls=True, **(names | changes))


def mutual(files: Certificates) -> ParameterServerConfig:
    return settings(files, client_ca_file=str(files.ca))


@pytest.fixture
def servers(tmp_path: Path, files: Certificates) -> Iterator[Servers]:
    with Servers(tmp_path, 2, tls=open_tls(mutual(files), HOST)) as servers:
        yield servers


def server_of(servers: Servers) -> SocketServer:
    server = servers.servers[0]
    assert server is not None
    return server


def until_refused(servers: Servers, count: int = 1) -> None:
    deadline = time.monotonic() + 10
    while server_of(servers).refused < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server_of(servers).refused == count


def raw(servers: Servers) -> socket.socket:
    address = servers.address(0)
    return socket.create_connection((address.host, address.port), timeout=10)


def channel(servers: Servers, tls: ssl.SSLContext | None, give_up_s: float = 0.3) -> SocketChannel:
    who = WorkerId(0, 1, 1)
    return SocketChannel(
        lambda: servers.address(0),
        lambda token: hello(servers.spec, 0, who, token),
        give_up_s,
        lambda pause_s: None,
        tls,
    )


def test_rows_over_tls_are_those_without_it(servers: Servers) -> None:
    local, client = LocalClient.fresh(toy_spec(), DENSE), servers.client()
    for each in (local, client):
        work(each, ALL, STEPS)
    keys = {"items": np.arange(20_000)}  # larger than many records of TLS
    rows, expected = client.lookup(STEPS, keys), local.lookup(STEPS, keys)
    assert np.array_equal(rows["items"], expected["items"]) and rows["items"].nbytes > 100_000
    client.close()
    assert servers.digest() == digest_of_shards(local.shards)
    assert [server and server.refused for server in servers.servers] == [0, 0]


def test_a_shard_of_another_authority_or_host_is_not_trusted(
    servers: Servers, other: Certificates, tmp_path: Path
) -> None:
    unknown = channel(servers, open_tls(settings(other)).worker)
    unknown.send(Frame(AppliedQuery()))
    answer = unknown.receive().message
    assert answer.kind == "hello"  # the client ends soon, with the reason
    assert "certificate: " in answer.text and "by parameter_server.ca_file" in answer.text

    elsewhere = make_certificates(tmp_path, "elsewhere", "127.0.0.2")
    with Servers(tmp_path / "misnamed", 1, tls=open_tls(settings(elsewhere), "127.0.0.2")) as misnamed:
        client = channel(misnamed, misnamed.tls.worker)
        client.send(Frame(AppliedQuery()))
        assert "IP address mismatch" in client.receive().message.text


@pytest.mark.parametrize("peer", ["plain", "no certificate", "other authority"])
def test_a_peer_that_is_not_trusted_is_dropped_counted_and_logged_once(
    servers: Servers, files: Certificates, other: Certificates, peer: str, caplog: pytest.LogCaptureFixture
) -> None:
    context = None
    if peer != "plain":
        context = ssl.create_default_context(cafile=str(files.ca))
    if peer == "other authority" and context:
        context.load_cert_chain(other.cert, other.key)
    for _ in range(3):
        with raw(servers) as sock, pytest.raises((OSError, ValueError)):
            tls = context.wrap_socket(sock, server_hostname=HOST) if context else sock
            send(tls, Frame(hello(servers.spec, 0, WorkerId(), TOKEN)))
            send(tls, Frame(AppliedQuery()))
            receive(tls)
            pytest.fail("it was answered")
    until_refused(servers, 3)
    lines = [record.message for record in caplog.records if "refused" in record.message]
    assert len(lines) == 1 and "refused a connection from 127.0.0.1: TLS fails" in lines[0]
    assert TOKEN not in caplog.text
    client = servers.client()
    assert client.applied_steps() == [0, 0]
    client.close()


@pytest.mark.slow
def test_peers_that_say_nothing_delay_nobody_and_are_dropped_in_time(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HELLO_TIMEOUT_S", 60.0)
    patient = [raw(servers) for _ in range(5)]
    patient[0].sendall(b"\x16\x03\x01")  # begins a handshake
    client = servers.client()
    assert client.applied_steps() == [0, 0] and server_of(servers).refused == 0
    monkeypatch.setattr(transport, "HELLO_TIMEOUT_S", 0.5)
    silent = [raw(servers) for _ in range(5)]
    until_refused(servers, 5)
    for sock in silent:
        assert sock.recv(100) == b""
        sock.close()
    for sock in patient:
        sock.close()
    assert client.applied_steps() == [0, 0]
    client.close()


def test_silent_peers_are_capped_and_one_that_is_gone_is_none(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_MOST_UNKNOWN", 2)
    with raw(servers) as gone:  # a reset, perhaps before the server has seen it
        gone.sendall(b"x")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    silent = [raw(servers) for _ in range(6)]
    for sock in silent[:4]:
        assert sock.recv(100) == b""
    client = servers.client()
    assert client.applied_steps() == [0, 0]
    for each in (client, *silent):
        each.close()


@pytest.mark.slow
def test_an_idle_connection_ends_and_its_worker_goes_on(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_IDLE_S", 1)
    server, client = server_of(servers), servers.client()
    assert client.applied_steps() == [0, 0]
    deadline = time.monotonic() + 30
    while server.connections and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not server.connections and not server.refused
    assert client.applied_steps() == [0, 0]
    client.close()


def test_without_the_setting_there_is_no_tls() -> None:
    assert open_tls(ParameterServerConfig()) == ShardTls(None, None)


def test_certificates_are_checked_at_the_start(
    files: Certificates, other: Certificates, tmp_path: Path
) -> None:
    good = mutual(files)
    context = open_tls(good).worker  # the address isn't known yet
    assert context is not None and context.check_hostname
    assert all(open_tls(good, HOST))
    old = make_certificates(tmp_path, "old", hours=-1)
    strangers = str(other.ca)
    for config, host, expected in (
        (replace(good, cert_file="/none.pem"), HOST, "cert_file '/none.pem'.*Expected PEM files"),
        (replace(good, client_ca_file="/none.pem"), HOST, "client_ca_file is '/none.pem'.*No such"),
        (replace(good, key_file=str(other.key)), HOST, "key_file '.*other-key.pem'.*its own key"),
        (replace(good, ca_file=strangers), HOST, r"\.ca_file is '.*other-ca.pem' and .*authority"),
        (replace(good, client_ca_file=strangers), HOST, "client_ca_file is '.*other-ca.pem'"),
        (mutual(old), HOST, "certificate has expired.*valid now"),
        (good, "192.0.2.7", "mismatch.*with 192.0.2.7 in it"),
    ):
        with pytest.raises(ValueError, match=f"parameter_server.*{expected}"):
            open_tls(config, host)
