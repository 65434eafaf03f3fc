"""The folds of sessions and counters as parts: what the log has lost, they read from the archive."""

from collections.abc import Callable

from recsys.config.system_config import Config
from recsys.log.protocol import Log
from recsys.process.part_process import Stop
from recsys.process.worker_share import WHOLE, Share
from serving.sessions import counter_loop, session_loop
from serving.sessions.counter_sums import SumLoop
from training.archive.whole_log import whole_log


def with_archive(config: Config) -> Callable[[Log], Log]:
    """Function that adds to a log what the archive has of it."""
    return lambda log: whole_log(log, config.state)


def sessions(config: Config, stop: Stop, share: Share = WHOLE) -> None:
    session_loop.run(config, stop, share, with_archive(config))


def counters(config: Config, stop: Stop, share: Share = WHOLE) -> None:
    """Counts events of items; the last of several processes adds up what the others count."""
    counting = share.workers - (not share.whole)
    if share.index == counting:
        counter_loop.run(config, stop, kind=SumLoop)
    else:
        counter_loop.run(config, stop, Share(share.index, counting), with_archive(config))
