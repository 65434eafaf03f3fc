"""Configuration of what protects a system and its viewers: access to the API, doors, disk, safety rules."""

from dataclasses import dataclass
from dataclasses import field as dataclass_field

import msgspec

from recsys.config.checks import Section, bounded, check, choice, fraction, positive
from recsys.events.field_schema import CATEGORICAL, Schema, likely_misspelt
from recsys.events.hashing import digest_of


@dataclass(frozen=True)
class AccessConfig(Section):
    section = "access"
    # keys: every call needs an API key or a user token. open: calls without one recommend,
    # send events and read.
    # auto: open where serve.host is a loopback address, otherwise keys.
    mode: str = choice("auto", "auto", "open", "keys")
    # Host names that the API answers to, besides serve.host, localhost, addresses; "*.example.org"; "*": any.
    hosts: tuple[str, ...] = ()
    # Origins whose web pages may call the API, besides its own: https://app.example.org
    origins: tuple[str, ...] = ()
    # Addresses of proxies, whose X-Forwarded-For is believed; of 127.0.0.1 each program of the machine's.
    proxies: tuple[str, ...] = ()
    # Calls a second of one API key, lists and events a second of one user; 0 is no limit.
    key_rate: float = bounded(0.0, 0)
    user_lists: float = bounded(5.0, 0)
    user_events: float = bounded(50.0, 0)


@dataclass(frozen=True)
class DoorsConfig(Section):
    section = "doors"
    # Time for a request's header and for its body, and for which a connection may be idle.
    header_s: float = positive(10.0)
    body_s: float = positive(10.0)
    idle_s: float = positive(60.0)
    # Open connections, of all and of one address or /64; proxies are exempt.
    connections: int = bounded(10_000, 16)
    per_source: int = bounded(256, 1)
    # PEM file with certificate and key: the API speaks HTTPS.
    certificate: str = ""
    # Loopback port without TLS for the system's own tools; `recsys up` chooses it with a certificate.
    local_port: int = bounded(0, 0, 65535)


@dataclass(frozen=True)
class DiskConfig(Section):
    section = "disk"
    # GB that the state folder may have, and the shares of it; what the others don't use, the archive may.
    budget_gb: float = positive(20.0)
    archive: float = fraction(0.35)
    log: float = fraction(0.45)
    snapshots: float = fraction(0.15)
    # With less than twice this room, on the disk or in the budget, the system saves space step by step.
    free_gb: float = positive(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = round(self.archive + self.log + self.snapshots, 6)
        names = "disk.archive + disk.log + disk.snapshots"
        check(shares <= 1, names, shares, "at most 1: they are shares of disk.budget_gb")


@dataclass(frozen=True)
class BoundsConfig(Section):
    section = "bounds"
    # Whether the influence of accounts and networks is bounded; events without a source never are.
    enabled: bool = True
    # Items that an account may judge at once, and a day after that. Beyond it nothing counts.
    burst: int = bounded(1000, 1)
    daily: int = bounded(1000, 1)
    # Kinds of engagement of an account with an item that count, besides view, long_view, skip and hide.
    kinds: int = bounded(2, 0)
    # Judgements of an item by new accounts, relative to those by established ones.
    new_ratio: float = bounded(3.0, 0)
    # Part of the items that a list must be chosen from, after what the viewer's side excludes: in a list of
    # fewer the engagements of new accounts don't count. 0: they do.
    free_share: float = bounded(0.5, 0, 1)
    # Judgements of an item by new accounts, and from one network or API key, that are always allowed.
    floor: int = bounded(20, 0)
    # Nats of evidence above chance with which the sentinel part holds users; 0: a person decides.
    hold_nats: float = bounded(0.0, 0)


@dataclass(frozen=True)
class SafetyRule:
    """Hides items whose ``field`` is or contains ``value`` from viewers for whom all of ``when`` holds and
    not all of ``unless``. Both name values of the request's context or the viewer's profile. For a viewer
    whose profile can't be read, ``when`` holds and ``unless`` doesn't."""

    value: str
    field: str = "labels"
    when: dict[str, str] = dataclass_field(default_factory=dict)
    unless: dict[str, str] = dataclass_field(default_factory=dict)


@dataclass(frozen=True)
class SafetyConfig:
    rules: tuple[SafetyRule, ...] = ()

    @property
    def viewer_fields(self) -> set[str]:
        """Names of the values that decide for whom rules hold."""
        return {name for rule in self.rules for name in (*rule.when, *rule.unless)}

    def check_viewer_fields(self, schema: Schema) -> None:
        """Raises ValueError for a name in ``when`` or ``unless`` that is a number of users, which profiles
        don't have, or looks like a misspelt field. Other names may come with a request's context."""
        fields = tuple(sorted({*dict(schema.context), *schema.names("user", CATEGORICAL)}))
        for name in sorted(self.viewer_fields - {*fields}):
            fits = name not in dict(schema.user) and likely_misspelt(fields, {name}) is None
            check(fits, "safety.rules: a name in when or unless", name,
                  f"a field of contexts, or of users one with text: {', '.join(fields)}")  # fmt: skip

    @property
    def digest(self) -> str:
        """Digest of the rules; empty without any."""
        return digest_of(msgspec.json.encode(self.rules, order="deterministic")) if self.rules else ""
