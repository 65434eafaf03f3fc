"""Interface of a follower: it reads some topics in one thread and changes a replica in another."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import msgspec

Change = TypeVar("Change")
R = TypeVar("R")


class Follower(ABC, Generic[Change]):
    """Follows some topics for one replica. ``read`` belongs to the reading thread, ``swap`` and ``apply`` to
    the event loop, between two requests.

    A change that is false has nothing to apply. After an error, whether in this follower or in another, the
    next ``read`` extends the same change, so that nothing is lost. ``apply`` begins another.
    """

    topic: ClassVar[str] = ""  # on whose state answers depend: a replica that lacks records of it isn't ready
    at_once: ClassVar[int] = 1  # records that are read before requests get their turn

    def __init__(self) -> None:
        self.unreadable = 0
        self.offset = 0  # the next to read of ``topic``

    @abstractmethod
    def read(self, limit: int) -> Change:
        """Reads up to ``limit`` records; waits for disks, decodes and builds what takes long. Raises
        LogUnavailable, and LogLost where the replica can't do without what is gone."""

    def swap(self, change: Change) -> None:
        """Swaps in what was built beside the state that answers, before any follower applies records."""

    @abstractmethod
    def apply(self, change: Change) -> None:
        """Changes the replica by a change that was read. Takes little time."""

    def decoded(self, value: bytes, decoder: "msgspec.msgpack.Decoder[R]") -> R | None:
        """A record's value; None for an unreadable one, which is counted."""
        try:
            return decoder.decode(value)
        except msgspec.MsgspecError:
            self.unreadable += 1
            return None
