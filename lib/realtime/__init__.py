"""Control within a deadline: plans take time, and the world does not wait for them.

    controller = RealTimeController(MPPI(wm), corrector, DriftGate(0.3), delay=2)    # plan ahead, correct at once
    controller = LateController(MPPI(wm), delay=2)                                   # plan for a state that is gone
    controller = BackgroundController(MPPI(wm), corrector, period=1 / 50)            # plan ahead in a thread

All are controllers like any other, for a batch of episodes; in the first two the delay is simulated, in decisions.
"""

from lib.realtime.background import BackgroundController
from lib.realtime.delayed import RealTimeController
from lib.realtime.delays import Delay
from lib.realtime.late import LateController

__all__ = ["BackgroundController", "Delay", "LateController", "RealTimeController"]
