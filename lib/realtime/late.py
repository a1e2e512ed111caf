"""The naive ways to control with a planner that is late: to plan for a state that is gone.

controller = LateController(MPPI(wm), delay=2)                # d planners: a plan for the state of d decisions ago
controller = LateController(MPPI(wm), delay=2, hold=True)     # one planner: its last action is held meanwhile
"""

from __future__ import annotations

import functools
from collections import namedtuple

import torch
from torch import Tensor, nn

from lib.compilation import prepared
from lib.planner import MPPI, shift
from lib.protocols import NOT_FINITE, answered, one_each, rows_of, unsound
from lib.realtime.delays import Delay, Delays, at_once, fitting
from lib.world_model import WorldModel

# A row's solve: the decisions at which it was begun and arrives, the first action (A,) and the mean (H, A) of its plan.
Solve = namedtuple("Solve", "begun, arrival, action, mean")


class LateController:
    """Executes the first action of a plan for the state that was seen when the solve of it was begun.

    One solve is begun at each decision, as if there were a planner for each that is on its way; an action is that of
    the newest observation of all that have arrived, which another may overtake. With `hold` one solve is on its way at
    a time, the next begins when it arrives, and the last action is held meanwhile. Before the first arrives `fallback`,
    a draft, acts, or without one the policy prior. A solve starts from the newest plan that has arrived, moved by the
    decisions since its observation. With a delay of 0 it is the planner at every step.

    Records are those of `RealTimeController`; nothing is predicted and nothing corrected, so that mismatch and score
    are NaN and delta_abs is 0. depth is the age of the observation that the action was planned for.
    """

    def __init__(self, planner: MPPI, delay: Delay = 1, hold: bool = False, fallback: nn.Module | None = None):
        self.planner, self.hold, self.fallback = planner, hold, fitting("draft", fallback, planner.wm)
        self._delays = Delays(delay)
        self._encode = prepared(planner.mode, functools.partial(_encode, planner.wm), range(1))
        self._begin = prepared(planner.mode, functools.partial(_fallback, planner.wm, fallback), range(1))
        self._batch = 0  # `reset` begins

    @property
    def wm(self) -> WorldModel:
        return self.planner.wm

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes: no plan, none on its way, and the rows' own random streams."""
        self._generators, self._batch, self._decision = one_each(generators, batch_size), batch_size, 0
        self._there: list[Solve | None] = [None] * batch_size  # the newest that has arrived
        self._coming: list[list[Solve]] = [[] for _ in range(batch_size)]
        self._solves = [0] * batch_size

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        self._batch, self._generators = len(rows), self._generators and [self._generators[i] for i in rows]
        for name in ("_there", "_coming", "_solves"):
            setattr(self, name, [getattr(self, name)[i] for i in rows])

    @torch.no_grad()
    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) for observations (B, obs_dim); `ValueError` when one of either is not finite."""
        obs, alone = rows_of(obs, self._batch, self.wm.device)
        z, sound = self._encode(obs)
        if not sound or not torch.isfinite(z).all():
            raise ValueError(unsound(obs))
        self._arrive()
        began = [row for row in range(self._batch) if not (self.hold and self._coming[row])]
        if began:
            self._solve(z, began)
            self._arrive()
        action, info = self._acted(z, began)
        if not torch.isfinite(action).all():
            raise ValueError(NOT_FINITE)
        return answered(action, info, alone)

    def _arrive(self) -> None:
        """Take what has arrived by now, unless something newer had before."""
        for row, coming in enumerate(self._coming):
            here = [solve for solve in coming if solve.arrival <= self._decision]
            known = [self._there[row]] if self._there[row] else []
            self._there[row] = max(known + here, key=lambda solve: solve.begun, default=None)
            self._coming[row] = [solve for solve in coming if solve.arrival > self._decision]

    def _solve(self, z: Tensor, rows: list[int]) -> None:
        """Begin a solve of each of these rows, from where it is."""
        shape, start = (self.planner.config.horizon, self.wm.action_dim), []
        for there in (self._there[row] for row in rows):
            known = there is not None
            start.append(shift(there.mean[None], self._decision - there.begun)[0] if known else z.new_zeros(shape))
        self.planner.reset_streams(self._decision)  # so that a row's Q heads do not depend on when others plan
        generators = self._generators and [self._generators[row] for row in rows]
        delays = [self._delays(self._solves[row], generators and generators[i]) for i, row in enumerate(rows)]
        plan = self.planner(z[rows], torch.stack(start), generators)
        for i, row in enumerate(rows):
            arrival = self._decision + delays[i]
            self._coming[row].append(Solve(self._decision, arrival, plan.actions[i, 0], plan.mean[i]))
            self._solves[row] += 1

    def _acted(self, z: Tensor, began: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Each row's action, and its records; the next decision begins."""
        waiting = torch.tensor([there is None for there in self._there], device=z.device)
        age = [0 if there is None else self._decision - there.begun for there in self._there]
        action = z.new_zeros(self._batch, self.wm.action_dim)
        for row, there in enumerate(self._there):
            if there is not None:
                action[row] = there.action
        if waiting.any():
            action = torch.where(waiting.unsqueeze(-1), self._begin(z), action)
        called, depth = torch.zeros_like(waiting), torch.tensor(age, device=z.device)
        called[began] = True
        none = torch.full_like(action[:, 0], torch.nan)
        self._decision += 1
        return action, {
            "planner_called": called,
            "fallback": waiting,
            "refined": torch.zeros_like(waiting),
            "depth": depth,
            "plan_age": depth.float().masked_fill(waiting, torch.nan),
            "mismatch": none,
            "score": none.clone(),
            "delta_abs": torch.zeros_like(none),
        }


def _encode(wm: WorldModel, obs: Tensor) -> tuple[Tensor, Tensor]:
    """The latents, and whether all observations are finite."""
    return wm.encode(obs), torch.isfinite(obs).all()


def _fallback(wm: WorldModel, draft: nn.Module | None, z: Tensor) -> Tensor:
    """The action (B, A) of who needs no plan at z (B, L)."""
    return at_once(wm, draft, z, wm.policy(z)[0])
