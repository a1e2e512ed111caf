"""Speculative execution of plans: plan once, execute several steps, correct each, replan when it has to be.

    controller = SpeculativeController(MPPI(wm), corrector, ValueGate(0.4), execution_horizon=6)
    controller.reset(batch_size=8)
    actions, info = controller.act(obs)      # (8, obs_dim) -> (8, A)

One controller drives a batch of parallel episodes; rows that need a plan are planned together in one call. Per row it
keeps the plan, the depth k, and the predicted latent ẑ_k, which is re-rolled with the action actually executed:
ẑ_{k+1} = d(ẑ_k, a_k), so that a correction does not itself look like drift. All that a decision without planning needs
(encode, re-roll, mismatch, planned action, correction, gate) is one function, compiled or captured as the planner is.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.compilation import prepared
from lib.config import ConfigError, one_of
from lib.correctors import appended, token
from lib.gates import Gate, Look
from lib.planner import MPPI, Plan, shift
from lib.protocols import NOT_FINITE, answered, one_each, rows_of, unsound
from lib.world_model import WorldModel, total_variation


@dataclass
class State:
    """What is kept of each row from one decision to the next.

    plan (B, H, A), the actions that are being executed, and mean (B, H, A), the planner's, for the next warm start;
    depth (B,), the steps of the plan that are done; the predicted latent z_pred (B, L) and the action executed (B, A),
    both of the last decision; and the corrector's history (B, K, ·), None for one that reads none.
    """

    plan: Tensor
    mean: Tensor
    depth: Tensor
    z_pred: Tensor
    executed: Tensor
    history: Tensor | None

    def kept(self, rows: list[int]) -> State:
        """Only these rows."""
        return State(*(None if x is None else x[rows] for x in vars(self).values()))


# What is known of a decision before anybody plans: the fields of `Look`; the gate's action (B, A), its score (NaN where
# there is no gate) and what the plan had promised (B,); the action's distance to the plan's (B,); the corrector's
# history with this step in it, or None; and whether all observations and actions are finite ().
Seen = namedtuple("Seen", (*Look._fields, "action", "score", "promised", "delta", "history", "sound"))


@dataclass
class Proposal:
    """What the controller would do now, before it is done. All rows: B.

    z, z_pred (B, L); a_plan, a_policy, action (B, A); depth, planner_called, fallback, refined (B,); mismatch and the
    gate's score (B,), both NaN at depth 0, and the score without a gate; delta_abs (B,), the mean absolute difference
    of the action to the plan's.
    """

    z: Tensor
    z_pred: Tensor
    a_plan: Tensor
    a_policy: Tensor
    action: Tensor
    depth: Tensor
    planner_called: Tensor
    fallback: Tensor
    refined: Tensor
    mismatch: Tensor
    score: Tensor
    delta_abs: Tensor

    def info(self) -> dict[str, Tensor]:
        """Per-row records of this decision: flags and numbers, each (B,)."""
        names = ("planner_called", "fallback", "refined", "depth", "mismatch", "score", "delta_abs")
        return {name: getattr(self, name) for name in names}


class SpeculativeController:
    """Executes up to `execution_horizon` steps of each plan, each repaired by `corrector` and judged by `gate`.

    A step that the gate does not let pass is a fallback: one planner call whose first action is executed at once. With
    a `refiner`, a planner of a few samples, such a step first gets a plan refined around its chosen action; that plan
    is executed if its value holds up against the gate's threshold, and only else is the planner called.

    Beyond the plan's own horizon the policy prior goes on inside the model, a_k = π(ẑ_k) (`tail="policy"`), the planner
    plans that far itself (`tail="plan"`), or the last action is held (`tail="hold"`, a straw man).
    """

    def __init__(
        self,
        planner: MPPI,
        corrector: nn.Module | None = None,
        gate: Gate | None = None,
        execution_horizon: int = 3,
        tail: str = "policy",
        refiner: MPPI | None = None,
    ):
        if execution_horizon < 1:
            raise ConfigError(f"execution_horizon={execution_horizon} must be at least 1.")
        wm, horizon = planner.wm, planner.config.horizon
        if corrector is not None and (corrector.latent_dim, corrector.action_dim) != (wm.latent_dim, wm.action_dim):
            raise ConfigError(
                f"the corrector was made for latent {corrector.latent_dim} and {corrector.action_dim} actions, "
                f"the world model has {wm.latent_dim} and {wm.action_dim}; train one for this teacher."
            )
        if one_of("tail", tail, ("policy", "plan", "hold")) == "plan" and horizon < execution_horizon:
            raise ConfigError(
                f"tail='plan' executes {execution_horizon} planned steps, but the planner plans {horizon}; give it a "
                "PlannerConfig with a horizon as long."
            )
        if refiner is not None and not (gate is not None and gate.checks_value and refiner.config.horizon == horizon):
            raise ConfigError(f"a refiner needs a gate that checks values, and the planner's horizon of {horizon}.")
        self.planner, self.corrector, self.gate, self.refiner = planner, corrector, gate, refiner
        self.execution_horizon, self.tail = execution_horizon, tail
        self._history_len = getattr(corrector, "history_len", 0)
        beyond = tail == "policy" and execution_horizon > horizon
        self._look = prepared(planner.mode, functools.partial(_look, wm, corrector, gate, beyond), range(6))
        self._encode = prepared(planner.mode, functools.partial(_encode, wm), range(1))
        self._batch = 0  # `reset` begins

    @property
    def wm(self) -> WorldModel:
        return self.planner.wm

    @property
    def plan(self) -> Tensor:
        """The plans that are being executed (B, H, A)."""
        return self._state.plan

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes: no plan, no warm start, and the rows' own random streams."""
        generators = one_each(generators, batch_size)
        wm, length = self.wm, self._history_len
        plan = torch.zeros(batch_size, self.planner.config.horizon, wm.action_dim, device=wm.device)
        z_pred, executed = plan.new_zeros(batch_size, wm.latent_dim), plan.new_zeros(batch_size, wm.action_dim)
        history = plan.new_zeros(batch_size, length, wm.latent_dim + wm.action_dim + 1) if length else None
        depth = torch.full((batch_size,), self.execution_horizon, device=wm.device)  # a plan is due
        self._state = State(plan, torch.zeros_like(plan), depth, z_pred, executed, history)
        self._batch, self._generators, self._decision = batch_size, generators, 0
        self._proposed = z_pred, history

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        self._state, self._batch = self._state.kept(rows), len(rows)
        self._generators = self._generators and [self._generators[i] for i in rows]

    def warm_start(self) -> Tensor:
        """Each row's plan mean moved by the steps it has executed (B, H, A): what a replan now would start from."""
        return shift(self._state.mean, self._state.depth)

    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) in [−1, 1] for observations (B, obs_dim), and per-row records (see `Proposal.info`)."""
        obs, alone = rows_of(obs, self._batch, self.wm.device)
        proposal = self._propose(obs)
        self._advance(proposal.action.clone())  # the caller may write to what is returned
        return answered(proposal.action, proposal.info(), alone)

    def propose(self, obs) -> Proposal:
        """Plan where needed and correct where possible, without executing. Follow with `commit` of what was executed.

        Raises `ValueError` when the batch differs from `reset`'s, an observation is not finite, or the action of a row
        whose plan goes on is not.
        """
        return self._propose(rows_of(obs, self._batch, self.wm.device)[0])

    @torch.no_grad()
    def _propose(self, obs: Tensor) -> Proposal:
        # A step without planning is as short as a few dozen operations on tensors, so that each of them counts here.
        due = self._state.depth >= self.execution_horizon
        asking = int(due.sum())
        seen = self._looked(obs) if asking < self._batch else self._encoded(obs)
        if not seen.sound:
            raise ValueError(unsound(obs))
        called, fallback = due, torch.zeros_like(due)
        refined = fallback
        if self.gate is not None and asking < self._batch:
            fallback, refined = self._judged(seen, due)
            called = due | fallback
            asking = int((called | refined).sum())
        if asking and called.any():
            self._take(called, self._solved(self.planner, seen.z, self.warm_start(), called))
        return self._assembled(seen, called, fallback, refined, asking > 0)

    def commit(self, actions: Tensor) -> None:
        """Record the executed actions (B, A), with which ẑ will be re-rolled; every row is one step deeper.

        Raises `ValueError` when an action is not finite.
        """
        if not torch.isfinite(actions).all():
            raise ValueError(NOT_FINITE)
        z_pred, history = self._proposed
        self._proposed = z_pred.clone(), history  # the caller may write to these latents, and to the actions
        self._advance(actions.clone())

    def _advance(self, executed: Tensor) -> None:
        state = self._state
        state.z_pred, state.history = self._proposed
        state.executed, state.depth, self._decision = executed, state.depth + 1, self._decision + 1

    # --------------------------------------------------------------------- look, judge, solve, assemble: one decision

    def _looked(self, obs: Tensor) -> Seen:
        """What is known of rows of which some have a plan that goes on."""
        s = self._state
        return Seen(*self._look(obs, s.plan, s.z_pred, s.executed, s.depth, s.history))

    def _encoded(self, obs: Tensor) -> Seen:
        """The same where a plan is due for all rows: there is nothing to look at but where they are."""
        z, sound = self._encode(obs)
        sound = sound & torch.isfinite(z).all()  # not compiled with it: what plans start from stays the same to the bit
        nothing = torch.zeros_like(self._state.executed)
        none = nothing[:, 0]
        return Seen(z, z, none, nothing, nothing, nothing, nothing, none, none, none, self._state.history, sound)

    def _judged(self, seen: Seen, due: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B,) that the gate sends to the planner, and those whose refined plan holds up; no row of `due`."""
        fallback = (seen.score > self.gate.threshold) & ~due
        if self.refiner is None or not fallback.any():
            return fallback, torch.zeros_like(due)
        refined = self._refine(seen, fallback)
        return fallback & ~refined, refined

    def _assembled(self, seen: Seen, called: Tensor, fallback: Tensor, refined: Tensor, any_fresh: bool) -> Proposal:
        """The proposal: what was seen, and in the rows with a fresh plan its first action."""
        if any_fresh:
            fresh = called | refined
            row, first = fresh.unsqueeze(-1), self._state.plan[:, 0]
            seen = seen._replace(
                z_pred=torch.where(row, seen.z, seen.z_pred),
                a_plan=torch.where(row, first, seen.a_plan),
                action=torch.where(row, first, seen.action),
                mismatch=seen.mismatch.masked_fill(fresh, torch.nan),
                score=seen.score.masked_fill(fresh, torch.nan),
                delta=seen.delta.masked_fill(fresh, 0.0),
            )
        self._proposed = seen.z_pred, seen.history
        return Proposal(
            z=seen.z, z_pred=seen.z_pred, a_plan=seen.a_plan, a_policy=seen.a_policy, action=seen.action,
            depth=self._state.depth, planner_called=called, fallback=fallback, refined=refined,
            mismatch=seen.mismatch, score=seen.score, delta_abs=seen.delta,
        )  # fmt: skip

    def _refine(self, seen: Seen, asked: Tensor) -> Tensor:
        """Refine the plans of the rows asked for around their chosen action; the rows (B,) where the value holds up.

        The value is that of the refined action by Q, as in the gate's own scores, so that the threshold fits it.
        """
        around = _around(self.wm, seen.z, seen.action, self._state.plan, self._state.depth)
        plan = self._solved(self.refiner, seen.z, around, asked)
        value = self.wm.q(seen.z[asked], plan.actions[:, 0]).mean(0)
        holds = seen.promised[asked] - value <= self.gate.threshold
        refined = asked.clone()
        refined[asked] = holds
        self._take(refined, Plan(*(x[holds] for x in vars(plan).values())))
        return refined

    def _solved(self, planner: MPPI, z: Tensor, start: Tensor, rows: Tensor) -> Plan:
        """Plans for the rows (B,) that are true, from latents (B, L) and a first mean (B, H, A)."""
        planner.reset_streams(self._decision)  # so that a row's Q heads do not depend on when others asked for plans
        generators = self._generators and [self._generators[i] for i in rows.nonzero().flatten().tolist()]
        return planner(z[rows], start[rows], generators)

    def _take(self, rows: Tensor, plan: Plan) -> None:
        """Queue new plans for the rows (B,) that are true."""
        self._state.plan[rows], self._state.mean[rows] = plan.actions, plan.mean
        self._state.depth = self._state.depth.masked_fill(rows, 0)  # a new tensor: a proposal may hold the old one


def _around(wm: WorldModel, z: Tensor, action: Tensor, plan: Tensor, depth: Tensor) -> Tensor:
    """A mean to refine (B, H, A) from latents z (B, L): the chosen action (B, A), then what is left of the plan
    (B, H, A) after `depth` steps (B,), then the policy prior inside the model."""
    horizon, mean = plan.shape[1], [action]
    left = shift(plan, depth)
    for t in range(1, horizon):
        z = wm.next(z, mean[-1])
        planned = (depth + t < horizon).unsqueeze(-1)
        mean.append(torch.where(planned, left[:, t], wm.policy(z)[0]))
    return torch.stack(mean, 1)


def _encode(wm: WorldModel, obs: Tensor) -> tuple[Tensor, Tensor]:
    """The latents, and whether all observations are finite."""
    return wm.encode(obs), torch.isfinite(obs).all()


def _look(wm: WorldModel, corrector, gate, beyond: bool, obs, plan, z_pred, executed, depth, history) -> Seen:
    """All that a decision without planning takes: observations (B, obs_dim) and what `State` has, to a `Seen`.

    `beyond`: past the plan's last action the policy prior goes on inside the model; else it is held.
    """
    z, z_pred = wm.encode(obs), wm.next(z_pred, executed)
    index = depth.clamp(0, plan.shape[1] - 1).view(-1, 1, 1).expand(-1, 1, plan.shape[2])
    a_plan = plan.gather(1, index).squeeze(1)
    a_policy = wm.policy(z)[0]
    if beyond:
        a_plan = torch.where((depth >= plan.shape[1]).unsqueeze(-1), wm.policy(z_pred)[0], a_plan)
    if history is not None:
        history = appended(history, token(z, z_pred, a_plan, depth))
    corrected = a_plan if corrector is None else corrector(z, z_pred, a_plan, a_policy, depth, history)
    look = Look(z, z_pred, total_variation(z, z_pred, wm.config.simnorm_dim), a_plan, a_policy, corrected)
    if gate is None:
        action, promised = corrected, torch.zeros_like(look.mismatch)
        score = torch.full_like(promised, torch.nan)
    else:
        action, score, promised = gate(wm, look)
    delta = torch.zeros_like(promised) if action is a_plan else (action - a_plan).abs().mean(-1)
    sound = torch.isfinite(obs).all() & torch.isfinite(action).all()
    return Seen(*look, action, score, promised, delta, history, sound)
