"""The real thing: a thread plans in the background, and the control thread only looks, corrects and hands over.

    with BackgroundController(MPPI(wm), corrector, DriftGate(0.3), period=1 / 50, fallback=draft) as controller:
        controller.reset()                       # the first one compiles, and takes as long
        action, info = controller.act(obs)       # never waits for a plan

It is `RealTimeController` but for the clock: the same state, the same look, the same prediction of where a plan will
arrive. It is a class beside it because a simulated delay is drawn before a solve and a real one is known after it, and
because what has a thread has to be closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib.compilation import prepared
from lib.config import ConfigError, quoted
from lib.gates import Gate
from lib.planner import MPPI, Plan, shift
from lib.protocols import answered, rows_of, unsound
from lib.realtime.delayed import RealTimeController, Seen, State, _look, recorded
from lib.realtime.delays import Delays
from lib.realtime.packaged import packaged
from lib.world_model import WorldModel

RECENT = 8  # solves, of which the slowest is how long the next is expected to take
FURTHEST = 100  # decisions; what a model predicts beyond that is nothing to plan from
COMPILING = 900.0  # seconds that the first `reset` waits for a planner to be compiled and warm
RECORDS = ("fallback", "refined", "depth", "plan_age", "mismatch", "score", "delta_abs")
ENDING = 5.0  # seconds that `close` waits for the solve that is on its way


@dataclass
class Solve:
    """A solve on its way: the decision at which it was `begun`, that for which it plans, `arrival`, and the positions
    in its batch of the `rows` that still run. Once it is `done`, its plan, or the error that it ended with; and whether
    it is counted among those that tell how long solves take."""

    begun: int
    arrival: int
    rows: list[int]
    plan: Plan | None = None
    error: BaseException | None = None
    counted: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class BackgroundController(RealTimeController):
    """Executes the plan that arrived last, each action repaired, while one thread plans for when the next will arrive.

    A solve is begun where none is on its way, for the decision at which it is `expected` to arrive: that many decisions
    later, or unless given as many as the slowest of the last few solves took. What arrives sooner waits for that
    decision; what arrives later is taken up at the action that is due by then, judged (by `gate`) by the latent that it
    has there, and dropped if none is left. All rows of a batch share solves. Where no plan acts see
    `RealTimeController`: that holds whatever the planner does. Where it raises, `error` is what, a line on stderr says
    so, and no solve is begun until the next `reset`; where it hangs, its plan never arrives.

    `period` is the time of a decision in seconds, the deadline of `act`. Records beside those of `RealTimeController`,
    all (B,): step_s, seconds of this `act`; deadline_met, whether they are at most `period`, true without one; queue,
    solves on their way or waiting for their decision as `act` returns; late, decisions that the plan taken up just now
    came after its own, -1 for none; dropped, a plan was, by the gate or as too late; failed, the planner has raised,
    at the one decision that noticed. A step takes no time for a plan, but whoever uses the others' time may: a
    garbage collector, a simulator, other processes.

    It is a thread and no process, as torch lets go of the interpreter's lock in its operators, and in a compiled part
    of a solve as a whole: beside 512 × 6 on two cores that others used too, the 99th and 99.9th percentiles of a step
    were 1.1 to 1.4 and 1.0 to 1.2 times those beside a process that plans, and its median 1.0 to 1.4 times. On a GPU
    the thread has a stream of its own.
    """

    def __init__(
        self,
        planner: MPPI,
        corrector: nn.Module | None = None,
        gate: Gate | None = None,
        period: float | None = None,
        fallback: nn.Module | None = None,
        expected: int | None = None,
    ):
        if period is not None and not 0 < period < math.inf:
            raise ConfigError(f"period={quoted(period)} must be the seconds of a decision, above 0.")
        if expected is not None and not Delays(expected)(0, None):
            raise ConfigError("expected=0 would be no delay at all; a plan that is made beside arrives in 1 or more.")
        super().__init__(planner, corrector, gate, 1, fallback)
        self._function = functools.partial(_decide, self.wm, corrector, gate, fallback)
        self._decide, self._alone = prepared(planner.mode, self._function, range(8)), None
        self._packages = planner.mode == "compiled"
        self.period, self.expected, self.error = period, expected, None
        self._took, self._warm = deque(maxlen=RECENT), set()
        self._thread: threading.Thread | None = None
        self._left: threading.Thread | None = None  # that could not be stopped
        self._solve: Solve | None = None  # that this episode waits for
        self._handed: Solve | None = None  # the latest that the thread was given, perhaps for an earlier one

    # ------------------------------------------------------------------------------------------- begin, go on, end

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes: no plan, and the rows' own random streams. What is on its way is dropped.

        The first one for a number of rows compiles all functions and times a solve, before any deadline counts.
        """
        super().reset(batch_size, generators)
        self._solve, self.error = None, None
        if self._thread is None:
            self._start()
        if batch_size not in self._warm:
            self._warm_up()

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        super().keep(rows)
        if self._solve:
            self._solve.rows = [self._solve.rows[i] for i in rows]

    def close(self) -> None:
        """End the thread, after the solve that is on its way; `reset` starts another. To call it twice does no harm.

        A solve that takes longer than some seconds is interrupted as soon as it is back in Python. One that never is
        cannot be stopped: a line on stderr says so, and its thread ends with the process.
        """
        self._batch, self._solve, self._handed = 0, None, None
        if self._thread:
            self._end()  # once; also called when nobody has this controller any more, and at the interpreter's exit
            self._thread, self._left = None, self._thread if self._thread.is_alive() else None

    def __enter__(self) -> BackgroundController:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @torch.no_grad()
    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) for observations (B, obs_dim); `ValueError` when one of either is not finite."""
        started = time.perf_counter()
        obs, alone = rows_of(obs, self._batch, self.wm.device)
        solve, s, late, missed = self._solve, self._state, -1, False
        done = solve is not None and solve.done.is_set()
        failed = done and solve.error is not None
        here = done and not failed and self._decision >= solve.arrival
        if here:
            late = self._decision - solve.arrival
            missed = late >= self.planner.config.horizon
            s = s if missed else self._with(solve, late)
        seen, records, later = self._decided(obs, s, here and not missed)
        if not seen.sound:
            raise ValueError(unsound(obs))  # as if the step had not been: whatever has come is still there
        if done and not solve.counted:
            solve.counted = True
            self._took.append(self._decision - solve.begun)
        if failed:
            self._give_up(solve.error)
        if here or failed:
            self._solve = None
        begins = self._solve is None and self.error is None and self._idle()
        if begins:
            looked = State(s.plan, s.mean, seen.position, s.depth, s.known, seen.z_pred, seen.history)
            self._solve = self._handed_over(seen, looked, self._expected(), self._generators)
        position, depth, dropped = later
        self._state = State(s.plan, s.mean, position, depth, s.known, seen.ahead, seen.history)
        self._decision += 1
        action, info = seen.action.clone(), dict(zip(RECORDS, records, strict=True))  # the thread reads what is cloned
        told = {"planner_called": begins, "late": late, "failed": failed, "queue": int(self._solve is not None)}
        info |= {name: self._of_all(value, obs.device) for name, value in told.items()} | {"dropped": dropped | missed}
        seconds = time.perf_counter() - started
        told = {"step_s": seconds, "deadline_met": not self.period or seconds <= self.period}
        return answered(action, info | {name: self._of_all(value, obs.device) for name, value in told.items()}, alone)

    # ------------------------------------------------------------------------------------------ what act is made of

    def _of_all(self, value, device: torch.device) -> Tensor:
        return torch.full((self._batch,), value, device=device)

    def _decided(self, obs: Tensor, s: State, arrived: bool) -> tuple[Seen, Sequence[Tensor], Sequence[Tensor]]:
        """What is seen of all rows, whose plan has `arrived` just now or not, and the rest of `_decide`."""
        made = self._alone if self._batch == 1 and self._alone else self._decide
        arrived = torch.full((self._batch,), arrived, device=obs.device)
        found = made(obs, s.z_pred, s.plan, s.position, s.depth, s.known, arrived, s.history)
        return Seen(*found[: len(Seen._fields)]), found[len(Seen._fields) : -3], found[-3:]

    def _with(self, solve: Solve, late: int) -> State:
        """The state, but that all rows execute this plan, from the action on that is due."""
        plan, rows = solve.plan, solve.rows
        found = [plan.actions[rows], plan.mean[rows], plan.latents[rows, late]]
        if plan.actions.is_cuda:  # made on the thread's stream, and to be read on this one
            for x in (plan.actions, plan.mean, plan.latents):
                x.record_stream(torch.cuda.current_stream(x.device))
        state = self._state.taking(list(range(len(rows))), *found, [self._decision - solve.begun] * len(rows))
        state.position.fill_(late)
        return state

    def _expected(self) -> int:
        """In how many decisions a plan that is begun now will arrive."""
        return self.expected or min(max(self._took, default=1), FURTHEST)

    def _idle(self) -> bool:
        """Whether the thread has nothing to do, not even for an episode that was left."""
        return self._handed is None or self._handed.done.is_set()

    def _handed_over(self, seen: Seen, state: State, delay: int, generators: list[torch.Generator] | None) -> Solve:
        """The solve that the thread now begins, for the decision in `delay` decisions."""
        rows, device = list(range(self._batch)), self.wm.device
        solve = Solve(self._decision, self._decision + delay, rows)
        plan = functools.partial(self._planned, seen, state, [delay] * self._batch, self._decision, generators)
        seen_by_then = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        self._handed = solve
        self._jobs.put((solve, plan, seen_by_then))
        return solve

    def _planned(self, seen: Seen, state: State, delays: list[int], decision: int, generators) -> Plan:
        """In the thread: plans from where the world will be, which is found as for simulated delays."""
        start = self._arrivals(seen, state, list(range(len(delays))), delays)
        self.planner.reset_streams(decision)
        plan = self.planner(start, shift(state.mean, state.position + delays[0]), generators)
        if plan.actions.shape != state.plan.shape or not torch.isfinite(plan.actions).all():
            raise ValueError("the planner gave actions of another shape, or that are not finite.")
        return plan

    def _give_up(self, error: BaseException) -> None:
        self.error = error
        why = (str(error).strip() or "no reason given").splitlines()[0]
        print(f"the planner failed, control goes on without: {type(error).__name__}: {why}", file=sys.stderr)

    # ------------------------------------------------------------------------------------------------------- the thread

    def _start(self) -> None:
        if self._left and self._left.is_alive():  # it may wake in the midst of another's solve
            raise RuntimeError("the planner still hangs in a solve of before `close`; make another planner.")
        self._jobs = queue.SimpleQueue()
        name = "speculative-tdmpc2 planner"
        self._thread = threading.Thread(target=_work, args=(self._jobs, self.wm.device), name=name, daemon=True)
        self._end = weakref.finalize(self, _ended, self._jobs, self._thread)
        self._thread.start()

    def _warm_up(self) -> None:
        """Compile all functions for so many rows, and time a solve."""
        obs, s = torch.zeros(self._batch, self.wm.native_obs_dim, device=self.wm.device), self._state
        if self._packages and self._batch == 1:
            self._packages = False
            given = obs, s.z_pred, s.plan, s.position, s.depth, s.known, s.known, s.history
            modules = [m for m in (self.wm, self.corrector, self.gate, self.fallback) if m is not None]
            self._alone = packaged(self._function, modules, given)
        seen, *_ = self._decided(obs, s, False)
        if not self._idle():  # a planner that hangs
            return
        for _ in range(2):
            begun = time.perf_counter()
            solve = self._handed_over(seen, s, 2, [torch.Generator().manual_seed(0)] * self._batch)
            if not solve.done.wait(COMPILING) or solve.error:
                self._solve = solve if solve.error else None  # `act` will tell
                return
        self._warm.add(self._batch)
        if self.period:
            self._took.append(math.ceil((time.perf_counter() - begun) / self.period))


def _decide(wm: WorldModel, corrector, gate, draft, obs, z_pred, plan, position, depth, known, arrived, history):
    """All of a step: what is seen, what there is to record (`RECORDS`), then position and depth (B,) of the next
    decision, and which rows (B,) have just dropped their plan."""
    seen = _look(wm, corrector, gate, draft, obs, z_pred, plan, position, depth, known, arrived, history)
    records = recorded(seen, plan, seen.position, depth, known)
    return *seen, *(records[name] for name in RECORDS), seen.position + 1, depth + 1, seen.position > position


def _work(jobs: queue.SimpleQueue, device: torch.device) -> None:
    """The thread: one solve after another. It holds nothing of a controller while it waits."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    while (job := jobs.get()) is not None:
        solve, plan, seen_by_then = job
        try:
            with torch.no_grad(), torch.cuda.stream(stream) if stream else contextlib.nullcontext():
                if stream:
                    stream.wait_event(seen_by_then)
                solve.plan = plan()
                if stream:
                    stream.synchronize()
        except BaseException as error:  # whatever a planner may raise: control goes on
            solve.error = error
        solve.done.set()
        del job, solve, plan


def _ended(jobs: queue.SimpleQueue, thread: threading.Thread) -> None:
    jobs.put(None)
    if thread is threading.current_thread():  # the last to know of the controller was a solve
        return
    thread.join(ENDING)
    if thread.is_alive():  # in the midst of torch, it would take the interpreter's exit down
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        thread.join(1)
    if thread.is_alive():
        print("a planner that hangs could not be stopped; its thread ends with the process.", file=sys.stderr)
