"""Bounds on the influence of one account, one network and new accounts on an item.

An account's engagements with an item are one judgement, which counts or not, as decided at the first of them:
by the account's room, by the share that the item has from its network or API key, and, for a new account, by
how many established ones judged the item. A pure function of the events of one partition with a ``source``;
events without one, as in data sets and old logs, always count.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterable
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.config.safety_config import BoundsConfig
from recsys.events.event_types import ENGAGEMENT_KINDS, Engagement, Impression
from recsys.events.hashing import key_of

Keys = NDArray[np.int64]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_DAY_MS: Final = 86_400_000
_OLD_MS: Final = _DAY_MS  # age of an established account
_YOUNGEST_MS: Final = 60_000  # … in a system that is younger than two of these
_JUDGED: Final = 20  # judgements of an established account
_ESTABLISHED: Final = 200  # established accounts before new ones are bounded, after two days …
_LEAST: Final = 20  # … in proportion before, and at least so many
_FEW: Final = 3  # accounts for each established one, beyond which a new system bounds no new ones
_EARLY: Final = 64  # judgements of a new account that become those of an established one with it
_NETWORK_TIMES: Final = 3.0  # of its share of judgements of other items, for a network or API key
_ACCOUNTS: Final = 50_000  # remembered accounts; also of items and of networks with an item
_JUDGEMENTS: Final = 100_000
UNREAD: Final = 24  # newest lists of a reader that may still be confirmed
_DECIDED, _COUNTS = 1, 2  # bits of a judgement; then one for each kind
_UNBOUNDED: Final = frozenset({"view", "long_view", "skip", "hide"})
_BOUNDED_KINDS: Final = sum(1 << n for n, k in enumerate(ENGAGEMENT_KINDS) if k not in _UNBOUNDED)
_KIND_BITS: Final = {kind: 4 << number for number, kind in enumerate(ENGAGEMENT_KINDS)}
_OTHERS: Final = 50  # bits for kinds under an app's own names: a judgement has 63


class _Packed(msgspec.Struct, array_like=True):
    accounts: list[tuple[int, list[float]]]
    items: list[tuple[int, list[int]]]
    networks: list[tuple[int, int]]
    sources: list[tuple[int, int]]
    judgements: list[tuple[int, int]]
    total: int
    established: int
    version: int = 0  # 1: networks by the key of the item
    first_ms: int = 0
    early: list[tuple[int, list[int]]] = []


class Influence:
    """Bounds of one partition of ``partitions``: each has its part of the floors. ``kinds``: those that an
    app declares, always in the same order."""

    def __init__(
        self, bounds: BoundsConfig | None = None, partitions: int = 1, kinds: Iterable[str] = ()
    ) -> None:
        others = enumerate(kind for kind in kinds if kind not in _KIND_BITS)
        first = len(ENGAGEMENT_KINDS)
        self._bits = _KIND_BITS | {kind: 4 << first + n % _OTHERS for n, kind in others}
        self.bounds = bounds or BoundsConfig()
        self._floor = self.bounds.floor / partitions
        self._partitions = partitions
        # First time, room, time of the room, judgements, whether it is established.
        self._accounts: OrderedDict[int, list[float]] = OrderedDict()
        self._items: OrderedDict[int, list[int]] = OrderedDict()  # judgements, of new accounts
        self._networks: OrderedDict[int, int] = OrderedDict()  # judgements by (source, item)
        self._sources: OrderedDict[int, int] = OrderedDict()
        self._judgements: OrderedDict[int, int] = OrderedDict()  # bits by (account, item)
        self._early: OrderedDict[int, list[int]] = OrderedDict()  # items that new accounts judged
        self._total = self._established = 0
        # Of the first judgement: a younger system has younger established accounts.
        self._first_ms = 0

    def like(self) -> "Influence":
        """Bounds as these, of nobody yet."""
        other = Influence()
        other._bits, other.bounds = self._bits, self.bounds
        other._floor, other._partitions = self._floor, self._partitions
        return other

    def bounds_event(self, event: Engagement | Impression) -> bool:
        """Whether the bounds apply to an event."""
        return self.bounds.enabled and isinstance(event.source, int)

    def counts(self, event: Engagement) -> bool:
        """Whether an engagement counts: its judgement does, and it is the first of its kind."""
        if not self.bounds_event(event):
            return True
        pair = _pair(event)
        bits = self._judgements.get(pair, 0)
        if not bits:
            bits = _DECIDED | (_COUNTS if self.admits(event) else 0)
        kind = self._bits.get(event.kind, 0)
        counts = bool(bits & _COUNTS) and not bits & kind and self.has_room(bits // 4, event.kind)
        if not counts:
            kind = 0  # so that a later kind finds the room that this one didn't take
        _put(self._judgements, pair, bits | kind, _JUDGEMENTS)
        return counts

    def has_room(self, kinds: int, kind: str) -> bool:
        """Whether a further kind of engagement with an item counts; ``kinds``: bits of those that do, in
        order of ``ENGAGEMENT_KINDS``. Kinds that an app declares aren't limited in number."""
        if kind in _UNBOUNDED or kind not in ENGAGEMENT_KINDS:
            return True
        return (kinds & _BOUNDED_KINDS).bit_count() < self.bounds.kinds

    def leaves_out(self, event: Engagement) -> bool:
        """Whether the account's judgement about the item was made, and doesn't count."""
        bits = self._judgements.get(_pair(event), 0) if self.bounds_event(event) else 0
        return bool(bits & _DECIDED) and not bits & _COUNTS

    def counted(self, event: Engagement) -> bool:
        """Whether engagements of this kind, account and item counted, as far as is remembered."""
        if not self.bounds_event(event):
            return True
        bits = self._judgements.get(_pair(event), 0)
        return bool(bits & _COUNTS) and bool(bits & self._bits.get(event.kind, 0))

    def admits(self, event: Engagement) -> bool:
        """Decides on a new judgement of an account about an item, and takes it off the account's room."""
        return self.admits_item(event, key_of("item", event.item_id))

    def admits_item(self, event: Engagement | Impression, key: int) -> bool:
        """As ``admits``, of an item of the event's list, by its key. What was done in a narrowed list
        counts only for an established account."""
        if not self.bounds_event(event):
            return True
        account_key = key_of("user", event.user_id)
        account = self._account(account_key, event.time_ms)
        if account[1] < 1:
            return False
        account[1] -= 1
        grown = self._grown(event.time_ms)
        is_new = event.time_ms - account[0] < max(_YOUNGEST_MS, _OLD_MS * grown)
        is_new = not account[4] and (is_new or account[3] < max(1.0, _JUDGED * grown))
        account[3] += 1
        if not is_new and not account[4]:
            self._establish(account, account_key)
        if is_new and isinstance(event, Engagement) and event.narrowed:
            return False
        item = self._items.get(key, [0, 0])
        if is_new and self._bounds_new(grown):
            if item[1] >= self._floor + self.bounds.new_ratio * (item[0] - item[1]):
                return False
        source = int(event.source)  # type: ignore[arg-type]  # checked above
        network = key_of(str(source), key)
        of_network, of_source = self._networks.get(network, 0), self._sources.get(source, 0)
        # Of judgements of other items, or a network raised its own share.
        others = self._total - item[0]
        share = (of_source - of_network) / others if others > 0 else 1.0
        if of_network >= self._floor + _NETWORK_TIMES * share * (item[0] + 1):
            return False
        _put(self._items, key, [item[0] + 1, item[1] + is_new], _ACCOUNTS)
        if is_new:
            self._judged_early(account_key, key)
        _put(self._networks, network, of_network + 1, _ACCOUNTS)
        _put(self._sources, source, of_source + 1, _ACCOUNTS)
        self._total += 1
        return True

    def _grown(self, now_ms: int) -> float:
        """Part of what makes an account established that one of a young system needs: accounts that are half
        as old as the system may be."""
        return min(1.0, max(0, now_ms - self._first_ms) / (2 * _OLD_MS))

    def _bounds_new(self, grown: float) -> bool:
        """Whether enough accounts are established to bound new ones by. In a young system that is a part of
        all, later a number that nobody raises by making accounts."""
        enough = max(_LEAST, _ESTABLISHED * grown) / self._partitions
        # Not accounts whose judgements were all refused, or an attacker's would end the bound.
        admitted = self._established + len(self._early)
        return self._established >= max(enough, admitted * (1 - grown) / _FEW)

    def _establish(self, account: list[float], key: int) -> None:
        """Makes an account established, and its judgements so far those of an established one: nearly all
        accounts of a young system were new at their first."""
        account[4] = 1.0
        self._established += 1
        for item_key in self._early.pop(key, ()):
            item = self._items.get(item_key)
            if item is not None:
                self._items[item_key] = [item[0], max(0, item[1] - 1)]

    def _judged_early(self, account: int, item_key: int) -> None:
        judged = self._early.get(account, [])
        if len(judged) < _EARLY:
            judged.append(item_key)
        _put(self._early, account, judged, _ACCOUNTS)

    def forget(self, user_id: str | int) -> None:
        """Drops a forgotten user's account. Judgements are hashes of account and item, and age out."""
        key = key_of("user", user_id)
        self._accounts.pop(key, None)
        self._early.pop(key, None)

    def pack(self) -> bytes:
        """The state for a snapshot."""
        packed = _Packed(
            list(self._accounts.items()), list(self._items.items()), list(self._networks.items()),
            list(self._sources.items()), list(self._judgements.items()), self._total, self._established, 1,
            self._first_ms, list(self._early.items()),
        )  # fmt: skip
        return _encoder.encode(packed)

    def restore(self, blob: bytes) -> None:
        """Continues from a packed state; an empty one, as in older snapshots, changes nothing."""
        if not blob:
            return
        packed = _decoder.decode(blob)
        self._accounts, self._judgements = (OrderedDict(packed.accounts), OrderedDict(packed.judgements))
        self._established = packed.established
        # Older snapshots don't have it.
        oldest_ms = min((account[0] for account in self._accounts.values()), default=0)
        self._first_ms = packed.first_ms or int(oldest_ms)
        if packed.version:  # else shares of networks begin anew
            self._items, self._networks = OrderedDict(packed.items), OrderedDict(packed.networks)
            self._sources, self._total = OrderedDict(packed.sources), packed.total
            self._early = OrderedDict(packed.early)

    def _account(self, key: int, now_ms: int) -> list[float]:
        bounds = self.bounds
        account = self._accounts.get(key)
        if account is None:
            account = [float(now_ms), float(bounds.burst), float(now_ms), 0.0, 0.0]
            self._first_ms = self._first_ms or now_ms
        passed_ms = max(0.0, now_ms - account[2])
        account[1] = min(float(bounds.burst), account[1] + passed_ms / _DAY_MS * bounds.daily)
        account[2] = max(account[2], float(now_ms))
        _put(self._accounts, key, account, _ACCOUNTS)
        return account


class _ReadList(msgspec.Struct, array_like=True, gc=False):
    user: int  # key of its reader
    keys: bytes  # int64 (N, I)
    width: int  # I
    counts: bytes = b""  # bool (N,): items that count; empty until the list is confirmed
    confirmed_ms: int = 0

    @property
    def items_NI(self) -> Keys:
        return np.frombuffer(self.keys, np.int64).reshape(-1, self.width)


class ShownItems(NamedTuple):
    """Items of a list by their keys (N, I), which count as shown at a time."""

    request_id: str
    items_NI: Keys
    time_ms: int


class ReadLists:
    """The newest lists that are shown as a whole, by request: ``most_bytes`` of their items' keys, and of
    those that nobody has confirmed the newest ``UNREAD`` of each reader. Each counts once it is confirmed, as
    far as the bounds admit its reader. ``evicted``: lists that were dropped before."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes, self.evicted = most_bytes, 0, 0
        self._lists = OrderedDict[str, _ReadList]()
        self._unread = defaultdict[int, dict[str, None]](dict)  # by reader, oldest first

    def add(self, impression: Impression, items_NI: Keys) -> None:
        """Remembers a list by the keys of its items; that of a request which is known stays as it is."""
        if impression.request_id not in self._lists:
            user = key_of("user", impression.user_id)
            self._put(impression.request_id, _ReadList(user, items_NI.tobytes(), items_NI.shape[1]))

    def confirm(
        self, reader: Engagement | Impression, bounds: Influence, engaged: int = 0
    ) -> ShownItems | None:
        """The items that count from now on; None if the list is unknown, another reader's, without the item,
        or confirmed already. ``engaged``: key of an item that counts in any case, also where the bounds left
        it out when its list was confirmed."""
        item = key_of("item", reader.item_id) if isinstance(reader, Engagement) else None
        read = self._lists.get(reader.request_id)
        if read is None or read.user != key_of("user", reader.user_id):
            return None
        items_NI = read.items_NI
        own = items_NI[:, 0].tolist()
        if item is not None and item not in own:
            return None
        before = read.counts
        if before:
            counts = [key == engaged and not counted for key, counted in zip(own, before, strict=True)]
            if not any(counts):
                return None
            read.counts = bytes(map(max, before, counts))
        else:
            counts = [key == engaged or bounds.admits_item(reader, key) for key in own]
            read.counts, read.confirmed_ms = bytes(counts), reader.time_ms
            self._is_read(reader.request_id, read)
        return ShownItems(reader.request_id, items_NI[np.array(counts, np.bool_)], read.confirmed_ms)

    def withdraw(self, request_id: str) -> tuple[Keys, int] | None:
        """Keys of the items that count no longer (N, I), and when they were counted; None if the list is
        unknown or wasn't confirmed."""
        read = self._pop(request_id)
        if read is None or not read.counts:
            return None
        return read.items_NI[np.frombuffer(read.counts, np.bool_)], read.confirmed_ms

    def pack(self) -> bytes:
        """The state for a snapshot."""
        return _encoder.encode(list(self._lists.items()))

    def restore(self, packed: bytes) -> None:
        """Continues from a packed state."""
        for request_id, read in msgspec.msgpack.decode(packed, type=_PackedLists):
            self._put(request_id, read)

    def _put(self, request_id: str, read: _ReadList) -> None:
        self._lists[request_id] = read
        self._bytes += len(read.keys)
        if not read.counts:
            unread = self._unread[read.user]
            unread[request_id] = None
            if len(unread) > UNREAD:
                self._evict(next(iter(unread)))
        while self._bytes > self._most and len(self._lists) > 1:
            self._evict(next(iter(self._lists)))

    def _evict(self, request_id: str) -> None:
        self._pop(request_id)
        self.evicted += 1

    def _pop(self, request_id: str) -> _ReadList | None:
        read = self._lists.pop(request_id, None)
        if read is not None:
            self._bytes -= len(read.keys)
            self._is_read(request_id, read)
        return read

    def _is_read(self, request_id: str, read: _ReadList) -> None:
        unread = self._unread.get(read.user, {})
        unread.pop(request_id, None)
        if not unread:
            self._unread.pop(read.user, None)


class Influences(dict[int, Influence]):
    """Bounds by partition, made as needed."""

    def __init__(
        self, bounds: BoundsConfig | None = None, partitions: int = 1, kinds: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self._arguments = bounds, partitions, tuple(kinds)

    def __missing__(self, partition: int) -> Influence:
        self[partition] = made = Influence(*self._arguments)
        return made

    def restore(self, blobs: Iterable[tuple[int, bytes]]) -> None:
        """Continues from packed states by partition."""
        for partition, blob in blobs:
            self[partition].restore(blob)


def kind_bit(kind: str) -> int:
    """Bit of a kind of engagement, in order of ``ENGAGEMENT_KINDS``; 0 for another label."""
    return _KIND_BITS.get(kind, 0) // 4


def _pair(event: Engagement) -> int:
    return key_of(str(event.user_id), event.item_id)


def _put(places: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    """Sets the newest value, and forgets the longest untouched one beyond the limit."""
    places[key] = value
    places.move_to_end(key)
    if len(places) > limit:
        places.popitem(last=False)


_PackedLists = list[tuple[str, _ReadList]]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Packed)
