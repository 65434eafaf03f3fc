"""Configuration of the log: its place, its topics, and the limits of what Kafka's brokers are told."""

import re
from dataclasses import dataclass

from recsys.config.checks import Section, bounded, check, choice, limited
from recsys.log.protocol import Brokers


@dataclass(frozen=True)
class LogConfig(Section, Brokers):
    section = "log"
    # sqlite (under the state folder) or kafka://host:port[,host:port]
    url: str = limited(
        "sqlite", lambda url: url == "sqlite" or url.startswith("kafka://"), "'sqlite' or 'kafka://host:port'"
    )
    # Of events and examples: the most workers that can share the folds.
    partitions: int = bounded(4, 1, 1024)
    retention_hours: int = bounded(72, 1)
    # "process": an acknowledged event survives kill -9 of any process (SQLite synchronous=normal).
    # "power": it survives a power cut too (synchronous=full), about 1 ms more per batch on an SSD.
    durability: str = choice("process", "process", "power")
    # All that follows, and what Brokers has, is for Kafka.
    prefix: str = limited(
        "", re.compile(r"[A-Za-z0-9._-]{0,100}").fullmatch, "at most 100 of A-Z a-z 0-9 . _ -"
    )
    replication: int = bounded(0, 0, 100)
    min_insync: int = bounded(0, 0, 100)
    compression: str = choice("none", "none", "gzip", "zstd")
    sasl: str = choice("none", "none", "plain", "scram-sha-256", "scram-sha-512")

    def __post_init__(self) -> None:
        super().__post_init__()
        copies = self.replication or self.min_insync
        check(self.min_insync <= copies, "log.min_insync", self.min_insync,
              f"at most log.replication, which is {copies}")  # fmt: skip
        self.check_needs("tls", self.tls, "ca_file", "cert_file")
        self.check_needs("cert_file", self.cert_file, "key_file")
        self.check_needs("sasl", self.sasl != "none", "user", "password_file")
        check(self.sasl == "none" or bool(self.user), "log.user", self.user, "a name with log.sasl")
