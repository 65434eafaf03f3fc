"""The part ``shadow``, which imports what learns once there is a step, a candidate or somebody to unlearn."""

from contextlib import closing

from recsys.config.system_config import Config
from recsys.events.records import STEPS
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop
from recsys.process.worker_share import WHOLE, Share
from training.lines.control import ControlReader


def run(config: Config, stop: Stop, share: Share = WHOLE) -> None:
    """Runs the part until asked to stop."""
    with closing(open_log(config)) as log:
        control = ControlReader(log)
        control.turn()
        lines = control.lifecycle
        while not (log.end(STEPS, 0) or lines.candidates or lines.unlearnings.by_id):
            if stop.is_set():
                return
            log.wait(STEPS, 0.5)
            control.turn()
    from training.candidates import shadow_loop

    shadow_loop.run(config, stop, share)
