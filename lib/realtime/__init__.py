"""Control within a deadline: plans take time, and the world does not wait for them.

    controller = RealTimeController(MPPI(wm), corrector, DriftGate(0.3), delay=2)    # plan ahead, correct at once
    controller = LateController(MPPI(wm), delay=2)                                   # plan for a state that is gone

Both are controllers like all others, for a batch of episodes; the delay is simulated, in decisions.
"""

from lib.realtime.delayed import RealTimeController
from lib.realtime.delays import Delay
from lib.realtime.late import LateController

__all__ = ["Delay", "LateController", "RealTimeController"]
