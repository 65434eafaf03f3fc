"""The part ``shadow``, which imports what learns once there is a step or a decision: before that nothing has
anything to follow."""

from contextlib import closing

from recsys.config.system_config import Config
from recsys.events.records import CONTROL, STEPS
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop


def run(config: Config, stop: Stop) -> None:
    """Runs the part until asked to stop."""
    with closing(open_log(config)) as log:
        while not any(log.end(topic, 0) for topic in (STEPS, CONTROL)):
            if stop.is_set():
                return
            log.wait(STEPS, 0.5)
    from training.candidates import shadow_loop

    shadow_loop.run(config, stop)
