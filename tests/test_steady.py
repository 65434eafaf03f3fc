import gc
import subprocess
import sys

SCRIPT = """
import gc, sys
from recsys.steady import SWITCH_S, steady
steady()
assert abs(sys.getswitchinterval() - SWITCH_S) < 1e-6, sys.getswitchinterval()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
"""


def test_what_a_process_holds_is_not_looked_through_and_threads_take_short_turns() -> None:
    frozen, turn = gc.get_freeze_count(), sys.getswitchinterval()
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)  # of this one nothing changes
    assert (gc.get_freeze_count(), sys.getswitchinterval()) == (frozen, turn)
