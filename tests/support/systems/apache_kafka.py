"""Apache Kafka on the loopback, one broker or three, from the jars of an unpacked release: the environment
variable ``KAFKA_LIBS`` names its folder ``libs``. Needs Java 17.

Each broker is a controller too (KRaft mode). It has a plain listener, one with TLS and a user (SASL), and one
with TLS that asks for a client's certificate.
"""

import os
import shutil
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, Self

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from recsys.config.log_config import LogConfig
from recsys.free_ports import free_ports
from tests.support.systems.tls_proxy import make_certificates

LIBS: Final = "KAFKA_LIBS"
USER: Final = "recsys"
PASSWORD: Final = "correct horse"
LISTENERS: Final = ("PLAIN", "SASL", "MTLS")
_CLUSTER: Final = "4L6g3nShT-eMCtK--X86sw"  # any id in this form
_READY_S: Final = 90.0
# Starts fast and stays small: a broker of a test does little.
_JVM: Final = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
_SETTINGS: Final = r"""
process.roles=broker,controller
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAIN
listener.security.protocol.map=PLAIN:PLAINTEXT,SASL:SASL_SSL,MTLS:SSL,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl.scram-sha-512.sasl.jaas.config=\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.mtls.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.truststore.type=PEM
auto.create.topics.enable=false
log.cleaner.dedupe.buffer.size=2097152
num.network.threads=2
num.io.threads=2
"""


def missing() -> str:
    """The reason why no broker can be started here; empty where one can."""
    folder = os.environ.get(LIBS, "")
    if not folder:
        return f"{LIBS} isn't set: expected the folder libs of an unpacked Apache Kafka"
    if not list(Path(folder).glob("kafka_*.jar")):
        return f"{LIBS} is {folder!r}, which has no kafka_*.jar"
    return "" if shutil.which("java") else "there is no java: Apache Kafka needs Java 17"


needs_jars = pytest.mark.skipif(bool(missing()), reason=missing())


class ApacheKafka:
    """``count`` brokers, numbered from 0, with their data in ``folder``; as a context they start and end."""

    def __init__(self, folder: Path, count: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._files = folder, make_certificates(folder / "certificates")
        (folder / "password").write_text(PASSWORD)
        keystore = self._files.key.with_name("keystore.pem")
        keystore.write_bytes(self._files.key.read_bytes() + self._files.cert.read_bytes())
        ports = free_ports()
        self._ports = [{name: next(ports) for name in (*LISTENERS, "CONTROLLER")} for _ in range(count)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            formatting = [self._format(number) for number in range(len(self._ports))]
            for number, process in enumerate(formatting):
                assert process.wait() == 0, self._output(number)
            for number in range(len(self._ports)):
                self._launch(number)
            self.wait_agreed()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for number in list(self._processes):
            self.kill(number)

    def config(self, listener: str = "PLAIN", **settings: Any) -> LogConfig:
        """The section ``log`` for a listener, with as many copies of a topic as there are brokers."""
        servers = ",".join(f"127.0.0.1:{ports[listener]}" for ports in self._ports)
        copies = len(self._ports)
        settings |= {"replication": copies, "min_insync": copies // 2 + 1}
        if listener != "PLAIN":
            settings |= {"tls": True, "ca_file": str(self._files.ca)}
        if listener == "SASL":
            password_file = str(self._folder / "password")
            settings |= {"sasl": "scram-sha-512", "user": USER, "password_file": password_file}
        if listener == "MTLS":
            cert_file, key_file = str(self._files.cert), str(self._files.key)
            settings |= {"cert_file": cert_file, "key_file": key_file}
        return LogConfig(f"kafka://{servers}", **settings)

    def run_without(self, killed: int | None) -> None:
        """Kills this broker and starts any other that was killed before, which takes up to 9 s each."""
        for number in range(len(self._ports)):
            if number != killed and number not in self._processes:
                self._launch(number)
        if killed in self._processes:
            self.wait_agreed()  # before there is one less
            self.kill(killed)
        self.wait_agreed()

    def kill(self, number: int) -> None:
        """Ends a broker with SIGKILL, as a crash does."""
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def _format(self, number: int) -> subprocess.Popen[bytes]:
        folder, ports = self._folder / str(number), self._ports[number]
        folder.mkdir()
        listeners = [f"{name}://127.0.0.1:{port}" for name, port in ports.items()]
        voters = [f"{n}@127.0.0.1:{each['CONTROLLER']}" for n, each in enumerate(self._ports)]
        (folder / "server.properties").write_text(
            _SETTINGS
            + f"node.id={number}\n"
            + f"listeners={','.join(listeners)}\n"
            + f"advertised.listeners={','.join(listeners[: len(LISTENERS)])}\n"
            + f"controller.quorum.voters={','.join(voters)}\n"
            + f"log.dirs={folder / 'data'}\n"
            + f"ssl.keystore.location={self._files.key.with_name('keystore.pem')}\n"
            + f"ssl.truststore.location={self._files.ca}\n"
        )
        user = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
        return self._java(
            number, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, "--add-scram", user,
            "-c", str(folder / "server.properties"),
        )  # fmt: skip

    def _launch(self, number: int) -> None:
        settings = str(self._folder / str(number) / "server.properties")
        self._processes[number] = self._java(number, "kafka.Kafka", settings)

    def _java(self, number: int, main: str, *words: str) -> subprocess.Popen[bytes]:
        jars = Path(os.environ[LIBS]).absolute() / "*"
        with open(self._folder / str(number) / "output", "ab") as output:
            return subprocess.Popen(
                ["java", *_JVM, "-cp", str(jars), main, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def wait_agreed(self) -> None:
        """Waits until each broker that runs takes exactly these for alive.

        The others give a killed one up after 9 s, and take a started one back not before that."""
        until_s = time.monotonic() + _READY_S
        for number in self._processes:
            while self._alive(number) != self._processes.keys():
                assert self._processes[number].poll() is None, self._output(number)
                assert time.monotonic() < until_s, self._output(number)
                time.sleep(0.1)

    def _alive(self, number: int) -> set[int]:
        """Brokers that aren't fenced, as this one says; none while it doesn't answer."""
        server = f"127.0.0.1:{self._ports[number]['PLAIN']}"
        with suppress(KafkaError):
            admin = KafkaAdminClient(bootstrap_servers=server, bootstrap_timeout_ms=1_000)
            with closing(admin):
                brokers = admin.describe_cluster()["brokers"]
                return {broker["broker_id"] for broker in brokers if not broker["is_fenced"]}
        return set()

    def _output(self, number: int) -> str:
        return (self._folder / str(number) / "output").read_text()[-4_000:]
