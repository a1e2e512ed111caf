"""Speculative execution of plans: plan once, execute several steps, correct each, replan when the queue is empty.

    controller = SpeculativeController(MPPI(wm), corrector, execution_horizon=3)
    controller.reset(batch_size=8)
    actions, info = controller.act(obs)      # (8, obs_dim) -> (8, A)

One controller drives a batch of parallel episodes; rows that need a plan are planned together in one call. Per row it
keeps the plan, the depth k, and the predicted latent ẑ_k, which is re-rolled with the action actually executed:
ẑ_{k+1} = d(ẑ_k, a_k), so that a correction does not itself look like drift. All that a decision without planning needs
(encode, re-roll, mismatch, planned action, correction) is one function, compiled or captured as the planner is.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.compilation import CPU_OPTIONS, Captured, Compiled
from lib.config import ConfigError, one_of
from lib.planner import MPPI, shift
from lib.world_model import WorldModel, total_variation


@dataclass
class Proposal:
    """What the controller would do now, before it is done. All rows: B.

    z, z_pred (B, L); a_plan, action (B, A); depth, planner_called, fallback (B,); mismatch (B,), NaN at depth 0.
    """

    z: Tensor
    z_pred: Tensor
    a_plan: Tensor
    action: Tensor
    depth: Tensor
    planner_called: Tensor
    fallback: Tensor
    mismatch: Tensor

    def info(self) -> dict[str, Tensor]:
        """Per-row records of this decision: flags and numbers, each (B,)."""
        return {
            "planner_called": self.planner_called,
            "fallback": self.fallback,
            "depth": self.depth,
            "mismatch": self.mismatch,
            "delta_abs": (self.action - self.a_plan).abs().mean(-1),
        }


class SpeculativeController:
    """Executes `execution_horizon` steps of each plan. Beyond the plan's own horizon the policy prior goes on inside
    the model, a_k = π(ẑ_k) (`tail="policy"`), or the last action is held (`tail="hold"`, a straw man).

    `gate(z, z_pred, depth) -> (B,) bool` asks for an early replan (a fallback); None never does. A fallback is one
    planner call whose first action is executed at once.
    """

    def __init__(
        self, planner: MPPI, corrector: nn.Module | None = None, gate=None, execution_horizon: int = 3, tail="policy"
    ):
        if execution_horizon < 1:
            raise ConfigError(f"execution_horizon={execution_horizon} must be at least 1.")
        wm = planner.wm
        if corrector is not None and (corrector.latent_dim, corrector.action_dim) != (wm.latent_dim, wm.action_dim):
            raise ConfigError(
                f"the corrector was made for latent {corrector.latent_dim} and {corrector.action_dim} actions, "
                f"the world model has {wm.latent_dim} and {wm.action_dim}; train one for this teacher."
            )
        self.planner, self.corrector, self.gate = planner, corrector, gate
        self.execution_horizon, self.tail = execution_horizon, one_of("tail", tail, ("policy", "hold"))
        beyond = self.tail == "policy" and execution_horizon > planner.config.horizon
        self._look = _prepared(planner, functools.partial(_look, planner.wm, corrector, beyond))
        self._batch = 0

    @property
    def wm(self) -> WorldModel:
        return self.planner.wm

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes: no plan, no warm start, and the rows' own random streams."""
        c, wm = self.planner.config, self.wm
        if generators is not None and len(generators) != batch_size:
            raise ConfigError(
                f"{len(generators)} generators were given for {batch_size} episodes; give one per episode."
            )
        self._batch, self._generators = batch_size, generators
        self._plan = torch.zeros(batch_size, c.horizon, wm.action_dim, device=wm.device)
        self._mean = torch.zeros_like(self._plan)
        self._z_pred = torch.zeros(batch_size, wm.latent_dim, device=wm.device)  # as it was at the last decision
        self._proposed = self._z_pred
        self._executed = torch.zeros(batch_size, wm.action_dim, device=wm.device)
        self._depth = torch.full((batch_size,), -1, device=wm.device)  # −1: nothing planned yet

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        for name in ("_plan", "_mean", "_z_pred", "_executed", "_depth"):
            setattr(self, name, getattr(self, name)[rows])
        self._generators = self._generators and [self._generators[i] for i in rows]
        self._batch = len(rows)

    def warm_start(self) -> Tensor:
        """Each row's plan mean moved by the steps it has executed (B, H, A): what a replan now would start from."""
        return shift(self._mean, self._depth.clamp(min=0))

    def act(self, obs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) in [−1, 1] for observations (B, obs_dim), and per-row records (see `Proposal.info`)."""
        proposal = self.propose(obs)
        self.commit(proposal.action)
        return proposal.action, proposal.info()

    @torch.no_grad()
    def propose(self, obs: Tensor) -> Proposal:
        """Plan where needed and correct where possible, without executing. Follow with `commit` of what was executed.

        Raises `ValueError` when the batch differs from `reset`'s, or an observation is not finite.
        """
        if len(obs) != self._batch:
            raise ValueError(
                f"{len(obs)} observations for {self._batch} episodes; call reset(batch_size={len(obs)}) first."
            )
        if not torch.isfinite(obs).all():
            raise ValueError(
                f"observations of rows {(~torch.isfinite(obs)).any(-1).nonzero().flatten().tolist()} are not finite."
            )
        obs = obs.to(self.wm.device)
        due = (self._depth < 0) | (self._depth >= self.execution_horizon)
        if due.all():  # nothing to look at
            z = z_pred = self.wm.encode(obs)
            a_plan = action = torch.zeros_like(self._executed)
            mismatch = torch.zeros(len(obs), device=z.device)
        else:
            z, z_pred, mismatch, a_plan, action = self._look(obs, self._plan, self._z_pred, self._executed, self._depth)
        fallback = torch.zeros_like(due)
        if self.gate is not None and not due.all():
            fallback = self.gate(z, z_pred, self._depth) & ~due
        called = due | fallback
        if called.any():
            first = self._replan(z, called)
            row = called.unsqueeze(-1)
            z_pred = torch.where(row, z, z_pred)
            a_plan, action = torch.where(row, first, a_plan), torch.where(row, first, action)
        self._proposed = z_pred
        return Proposal(
            z=z,
            z_pred=z_pred,
            a_plan=a_plan,
            action=action,
            depth=self._depth.clone(),
            planner_called=called,
            fallback=fallback,
            mismatch=mismatch.masked_fill(called, torch.nan),
        )

    def commit(self, actions: Tensor) -> None:
        """Record the executed actions (B, A), with which ẑ will be re-rolled; every row is one step deeper.

        Raises `ValueError` when an action is not finite.
        """
        if not torch.isfinite(actions).all():
            raise ValueError("an action is not finite; check the weights of the corrector and of the world model.")
        self._z_pred, self._executed = self._proposed.clone(), actions.clone()  # the caller may write to both
        self._depth = self._depth + 1

    def _replan(self, z: Tensor, called: Tensor) -> Tensor:
        """New plans for the called rows; the first actions of all rows' plans (B, A)."""
        rows = called.nonzero().flatten()
        generators = self._generators and [self._generators[i] for i in rows.tolist()]
        plan = self.planner(z[rows], self.warm_start()[rows], generators)
        self._plan[rows], self._mean[rows], self._depth[rows] = plan.actions, plan.mean, 0
        return self._plan[:, 0]


def _prepared(planner: MPPI, look):
    """`look` run as the planner runs: as it is, compiled, or captured (uncompiled: a graph has no launches to save)."""
    if planner.mode == "eager":
        return look
    if planner.mode == "compiled":
        return Compiled(look, "controller", CPU_OPTIONS if planner.wm.device.type == "cpu" else None, range(5))
    modules = [m for m in look.args if isinstance(m, nn.Module)]
    return Captured(look, [p for m in modules for p in m.parameters()])


def _look(wm: WorldModel, corrector: nn.Module | None, beyond: bool, obs, plan, z_pred, executed, depth):
    """What a decision without planning takes. obs (B, obs_dim), plan (B, H, A), and, at the decision before, the
    predicted latent (B, L) and the action (B, A); depth (B,), which is now.

    Returns z, z_pred (B, L), mismatch (B,), the planned and the corrected action (B, A). `beyond`: past the plan's last
    action the policy prior goes on inside the model; else the last action is held.
    """
    z, z_pred = wm.encode(obs), wm.next(z_pred, executed)
    index = depth.clamp(0, plan.shape[1] - 1).view(-1, 1, 1).expand(-1, 1, plan.shape[2])
    a_plan = plan.gather(1, index).squeeze(1)
    if beyond:
        a_plan = torch.where((depth >= plan.shape[1]).unsqueeze(-1), wm.policy(z_pred)[0], a_plan)
    action = a_plan if corrector is None else corrector(z, z_pred, a_plan, depth)
    return z, z_pred, total_variation(z, z_pred, wm.config.simnorm_dim), a_plan, action


class PolicyController:
    """The policy prior's mean at every decision: no planning, the cheapest arm."""

    def __init__(self, wm: WorldModel):
        self.wm = wm

    def reset(self, batch_size: int = 1, generators=None) -> None:
        """Nothing is kept between decisions."""

    def keep(self, rows: list[int]) -> None:
        """Nothing is kept between decisions."""

    @torch.no_grad()
    def act(self, obs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) for observations (B, obs_dim); `ValueError` when one is not finite."""
        if not torch.isfinite(obs).all():
            raise ValueError("an observation is not finite.")
        action = self.wm.policy(self.wm.encode(obs.to(self.wm.device)))[0]
        zero = torch.zeros(len(obs), device=action.device)
        info = {"planner_called": zero.bool(), "fallback": zero.bool(), "depth": zero.long()}
        return action, info | {"mismatch": zero + torch.nan, "delta_abs": zero}
