"""Model variants beside the live one, each for some of the users, and the choice of the one that answers a
user.

A variant has a replica, followers and a thread of its own. It is created when its line is wanted and
has a snapshot, and dropped when it isn't wanted any more. Until it has caught up, live answers. Exactly one
variant answers a request, and the stamp names its line.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final

from experiments.promotion.kinds.line_state import LineState
from parameter_server.storage import snapshots
from recsys.events.hashing import Id
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from serving.pipeline import Pipeline
from serving.variants.model_variant import ModelVariant

_RETRY_S: Final = 5.0  # after a variant couldn't be created or failed
_SNAPSHOT_POLL_S: Final = 1.0  # for a line's first snapshot


class ModelVariants:
    """Creates and drops variants, in the event loop that answers: before each request, ``set_wanted``."""

    def __init__(
        self, log: Log, live: ModelVariant, now_ms: Callable[[], int], first: FeatureSet | None = None
    ) -> None:
        """``first``: the set of the state folder's file, if the live replica's is another."""
        self._log, self._live, self._now_ms, self._first = log, live, now_ms, first
        self._snapshots = Path(live.replica.config.state) / "snapshots"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._variants: dict[str, ModelVariant] = {}  # changed by ``set_wanted`` alone
        self._created: deque[ModelVariant] = deque()  # by threads, not yet in ``_variants``
        self._wanted: frozenset[str] = frozenset()
        self._creating: set[str] = set()
        self._retry_at_s: dict[str, float] = {}

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets variants follow the log in threads of their own."""
        self._loop = loop

    def set_wanted(self, lines: Collection[str]) -> None:
        """Sets the lines that need a variant. Neither waits nor raises."""
        self._wanted = frozenset(lines)
        creating = frozenset(self._creating)  # before collecting, so that none is created twice
        self._collect_created()
        for line, variant in list(self._variants.items()):
            if variant.thread.failure:
                self._retry_at_s[line] = time.monotonic() + _RETRY_S
            if line not in self._wanted or variant.thread.failure:
                self._drop(self._variants.pop(line))
        for line in self._wanted - self._variants.keys() - creating:
            if self._loop is None:
                self._create(line)
                self._collect_created()
            elif time.monotonic() >= self._retry_at_s.get(line, 0.0):
                self._creating.add(line)
                create = partial(self._create, line)
                threading.Thread(target=create, name="variant", daemon=True).start()

    def _collect_created(self) -> None:
        while self._created:
            variant = self._created.popleft()
            self._variants[variant.line] = variant

    def get(self, line: str) -> ModelVariant | None:
        """Variant of a line, whether or not it has caught up; None if there is none yet."""
        return self._variants.get(line)

    @property
    def all(self) -> list[ModelVariant]:
        return list(self._variants.values())

    async def stop(self) -> None:
        """Ends the threads of all variants."""
        self._loop = None
        self._collect_created()
        variants, self._variants = list(self._variants.values()), {}
        for variant in variants:
            await asyncio.to_thread(variant.thread.stop)

    def _create(self, line: str) -> None:
        """Creates a variant, in a thread: builds a model and asks the log for its end. A failure, or a
        missing snapshot, is retried after a while."""
        try:
            if not snapshots.complete_steps(self._snapshots, line, 0):
                self._retry_at_s[line] = time.monotonic() + _SNAPSHOT_POLL_S
                return
            live = self._live
            variant = ModelVariant(
                live.replica.config, self._log, live.replica.features, self._now_ms, self._first,
                line=line, control=live.control,
            )  # fmt: skip
            if self._loop is not None:
                variant.thread.start(self._loop)
            self._created.append(variant)
        except Exception:
            logging.getLogger(__name__).exception("the variant %s can't be created", line)
            self._retry_at_s[line] = time.monotonic() + _RETRY_S
        finally:
            self._creating.discard(line)

    def _drop(self, variant: ModelVariant) -> None:
        """Stops a variant that answers no more, without waiting for its thread."""
        if self._loop is not None:
            stop = variant.thread.stop
            threading.Thread(target=stop, name="variant-stop", daemon=True).start()


class CanaryRouter:
    """Routes users to variants; belongs to the event loop that answers. ``update`` precedes each request."""

    def __init__(self, variants: ModelVariants) -> None:
        self.variants = variants
        self.state: LineState | None = None
        self.answered = Counter[str]()  # by line

    @property
    def variant(self) -> ModelVariant | None:
        """Variant of the canary."""
        return None if self.state is None else self.variants.get(self.state.line)

    def update(self, state: LineState | None, arms: Collection[str] = ()) -> None:
        """Sets the candidate that answers now, if any, and the lines of arms. Neither waits nor raises."""
        self.state = state
        self.variants.set_wanted([*arms] if state is None else [*arms, state.line])

    def pipeline(self, user_id: Id, line: str = "", counts: bool = True) -> Pipeline | None:
        """Pipeline for a user; None if live answers, also because the variant can't serve yet.

        ``line``: line of the user's arm. The canary never answers such a user: it would blur the arms.
        ``counts``: whether to count the list.
        """
        variant = self.variants.get(line) if line else self.variant
        if variant is None or not variant.servable:
            return None
        if not line and not (self.state and self.state.serves(user_id)):
            return None
        if counts:
            self.answered[variant.line] += 1
        return variant.pipeline
