"""Plan in the background for where the world will be, correct in the foreground: with a delay that is simulated.

    controller = RealTimeController(MPPI(wm), corrector, delay=2)
    controller.reset(batch_size=8)
    actions, info = controller.act(obs)      # (8, obs_dim) -> (8, A)

A solve that is begun at decision t with a delay of d arrives at t + d, and the next begins then. It plans from the
latent that the model predicts for t + d: rolled from the real one along the actions that this controller will execute,
which it finds by acting as it does, with the model as the world. `_acting` is both. Until a plan arrives, actions come
from the present one, each repaired by the corrector from the real latent.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.compilation import prepared
from lib.config import ConfigError
from lib.correctors import MAX_DEPTH, appended, token
from lib.gates import Gate, Look
from lib.planner import MPPI, Plan, shift
from lib.protocols import answered, one_each, rows_of, unsound
from lib.realtime.delays import Delay, Delays, at_once, fitting
from lib.world_model import WorldModel, total_variation


@dataclass
class State:
    """What is kept of each row from one decision to the next.

    Of the present plan: its actions and the planner's mean (B, H, A); position (B,), the actions of it that are done;
    depth (B,), the decisions since the observation that it knew; and whether there has been any, known (B,).
    z_pred (B, L) is the latent predicted for the next decision, history (B, K, ·) the corrector's, or None.
    """

    plan: Tensor
    mean: Tensor
    position: Tensor
    depth: Tensor
    known: Tensor
    z_pred: Tensor
    history: Tensor | None

    def kept(self, rows: list[int]) -> State:
        """Only these rows."""
        return State(*(None if x is None else x[rows] for x in vars(self).values()))

    def taking(self, rows: list[int], plan: Tensor, mean: Tensor, z: Tensor, depth: list[int]) -> State:
        """The same, but that these rows begin with plans (R, H, A) from latents z (R, L) that are `depth` old."""
        new = State(*(None if x is None else x.clone() for x in vars(self).values()))
        new.plan[rows], new.mean[rows], new.z_pred[rows] = plan, mean, z
        new.position[rows], new.depth[rows], new.known[rows] = 0, torch.tensor(depth, device=z.device), True
        if new.history is not None:
            new.history[rows] = 0.0  # its tokens are of another plan
        return new


@dataclass
class Coming:
    """The one solve of a row that is on its way: the decision at which it arrives, how old its observation is then, the
    latent (L,) that was predicted for it, and what was planned from there: actions and mean (H, A)."""

    arrival: int
    delay: int
    z: Tensor
    plan: Tensor
    mean: Tensor


# What is known of a decision before anybody plans, all rows: latents z, z_pred, and the next prediction, ahead (B, L);
# position (B,) and history, as in `State`; the action (B, A), whether it comes of a plan, acts, and its distance to the
# plan's, delta; mismatch and score (B,); and whether all observations and actions are finite ().
Seen = namedtuple("Seen", "z, z_pred, ahead, position, history, action, acts, delta, mismatch, score, sound")


class RealTimeController:
    """Executes the plan that arrived last, each action repaired by `corrector`, while the next one is on its way.

    `delay` is how many decisions a solve takes; with 0 it is the planner at every step. Rows of a batch have each their
    own solves; those that begin together are planned in one call. Where no plan has an action, what acts at once does:
    `fallback`, a draft, or without one the policy prior. That is so before the first plan arrives, beyond a plan's end,
    and after the gate has dropped one. Without a draft the corrector repairs the prior's actions too, once a plan has
    arrived: those inside the model, π(ẑ), where ẑ goes on from the plan's end, or from the latent it was dropped at.

    `gate` scores a plan when it arrives, by how far the latent that it was made for is from the real one. One above its
    threshold is dropped, and nobody waits for the next.

    Records of a decision (B,): planner_called, a solve was begun; fallback, no plan had an action; depth, the decisions
    since the observation that the acting plan knew, 0 where none acts; plan_age, the same of the plan that arrived
    last, NaN before the first; mismatch and the gate's score, NaN before the first and at depth 0; delta_abs, the mean
    absolute difference of the action to the plan's.
    """

    def __init__(
        self,
        planner: MPPI,
        corrector: nn.Module | None = None,
        gate: Gate | None = None,
        delay: Delay = 1,
        fallback: nn.Module | None = None,
    ):
        wm = planner.wm
        if gate is not None and gate.checks_value:
            raise ConfigError("a plan is dropped by its drift; give a gate that scores that, such as DriftGate.")
        self.planner, self.gate = planner, gate
        self.corrector, self.fallback = fitting("corrector", corrector, wm), fitting("draft", fallback, wm)
        self._delays = Delays(delay)
        self.delay = self._delays.given
        self._history_len = getattr(corrector, "history_len", 0)
        self._look = prepared(planner.mode, functools.partial(_look, wm, corrector, gate, fallback), range(8))
        self._imagine = prepared(planner.mode, functools.partial(_imagined, wm, corrector, fallback), range(7))
        self._encode = prepared(planner.mode, functools.partial(_encode, wm), range(1))
        self._batch = 0  # `reset` begins

    @property
    def wm(self) -> WorldModel:
        return self.planner.wm

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes: no plan, none on its way, and the rows' own random streams."""
        self._generators, self._batch, self._decision = one_each(generators, batch_size), batch_size, 0
        wm, length, horizon = self.wm, self._history_len, self.planner.config.horizon
        plan = torch.zeros(batch_size, horizon, wm.action_dim, device=wm.device)
        position = torch.full((batch_size,), horizon, device=wm.device)  # nothing is left of no plan
        history = plan.new_zeros(batch_size, length, wm.latent_dim + wm.action_dim + 1) if length else None
        z_pred, none = plan.new_zeros(batch_size, wm.latent_dim), torch.zeros_like(position)
        self._state = State(plan, torch.zeros_like(plan), position, none, none > 0, z_pred, history)
        self._coming: list[Coming | None] = [None] * batch_size
        self._solves = [0] * batch_size
        self._next = [self._delay_of(row) for row in range(batch_size)]  # of the solve that will be begun next

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        self._batch, self._state = len(rows), self._state.kept(rows)
        self._generators = self._generators and [self._generators[i] for i in rows]
        for name in ("_coming", "_solves", "_next"):
            setattr(self, name, [getattr(self, name)[i] for i in rows])

    @torch.no_grad()
    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) for observations (B, obs_dim); `ValueError` when one of either is not finite."""
        obs, alone = rows_of(obs, self._batch, self.wm.device)
        arriving = [row for row, coming in enumerate(self._coming) if coming and coming.arrival == self._decision]
        beginning = [row for row, coming in enumerate(self._coming) if not coming or row in arriving]
        delays = [self._next[row] for row in beginning]
        state = self._state
        if arriving:
            here = [self._coming[row] for row in arriving]
            plans = (torch.stack([getattr(coming, name) for coming in here]) for name in ("plan", "mean", "z"))
            state = state.taking(arriving, *plans, [coming.delay for coming in here])
        looking = len(beginning) < self._batch or any(delays)
        judged = [row for row in arriving if self._next[row]]  # else its place is taken at once
        seen = self._looked(obs, state, judged) if looking else self._encoded(obs, state)
        if not seen.sound:
            raise ValueError(unsound(obs))
        state = dataclasses.replace(state, position=seen.position, z_pred=seen.z_pred, history=seen.history)
        if beginning:
            start = self._arrivals(seen, state, beginning, delays)
            steps = state.position[beginning] + torch.tensor(delays, device=start.device)
            plan = self._solved(start, shift(state.mean[beginning], steps), beginning)
            state, seen = self._begun(state, seen, beginning, delays, start, plan)
        return answered(seen.action, self._done(state, seen, beginning), alone)

    # ------------------------------------------------------------------------------------- what a decision is made of

    def _looked(self, obs: Tensor, state: State, judged: list[int]) -> Seen:
        """What is seen of all rows; the plans of those that are `judged` may be dropped."""
        arrived = torch.zeros_like(state.known)
        arrived[judged] = True
        s = state
        return Seen(*self._look(obs, s.z_pred, s.plan, s.position, s.depth, s.known, arrived, s.history))

    def _encoded(self, obs: Tensor, state: State) -> Seen:
        """The same where all execute what they will plan now: there is nothing to look at but where they are."""
        z, sound = self._encode(obs)
        sound = sound & torch.isfinite(z).all()  # not compiled with it: what plans start from stays the same to the bit
        none, nothing = torch.zeros_like(z[:, 0]), torch.zeros_like(state.plan[:, 0])
        return Seen(z, z, z, state.position, state.history, nothing, none > 0, none, none, none, sound)

    def _arrivals(self, seen: Seen, state: State, rows: list[int], delays: list[int]) -> Tensor:
        """The latents (R, L) in which solves of these rows arrive: the real ones, rolled along the actions to come."""
        start, s = seen.z[rows], state.kept(rows)
        left = torch.tensor(delays, device=start.device)
        if not left.any():
            return start
        begun = self.wm.next(start, seen.action[rows])
        start, z_pred, history = torch.where((left > 0).unsqueeze(-1), begun, start), seen.ahead[rows], s.history
        for step in range(1, max(delays)):
            z, z_pred, history = self._imagine(
                start, z_pred, s.plan, s.position + step, s.depth + step, s.known, history
            )
            start = torch.where((left > step).unsqueeze(-1), z, start)
        return start

    def _solved(self, z: Tensor, start: Tensor, rows: list[int]) -> Plan:
        """Plans for these rows, from latents (R, L) and a first mean (R, H, A)."""
        self.planner.reset_streams(self._decision)  # so that a row's Q heads do not depend on when others plan
        return self.planner(z, start, self._generators and [self._generators[row] for row in rows])

    def _begun(self, state: State, seen: Seen, rows: list[int], delays: list[int], z: Tensor, plan: Plan):
        """The state, and what is seen, once these rows' plans are on their way, or with no delay executed."""
        fresh = [i for i, delay in enumerate(delays) if not delay]
        for i, row in enumerate(rows):
            arrival = self._decision + delays[i]
            coming = Coming(arrival, delays[i], z[i], plan.actions[i], plan.mean[i])
            self._coming[row] = coming if delays[i] else None
            self._solves[row] += 1
            self._next[row] = self._delay_of(row)
        if fresh:
            row = [rows[i] for i in fresh]
            state = state.taking(row, plan.actions[fresh], plan.mean[fresh], z[fresh], [0] * len(row))
            seen = seen._replace(**{name: getattr(seen, name).clone() for name in ("action", "acts", "delta", "ahead")})
            seen.action[row], seen.acts[row], seen.delta[row] = plan.actions[fresh, 0], True, 0.0
            seen.ahead[row] = self.wm.next(z[fresh], seen.action[row])
        return state, seen

    def _done(self, state: State, seen: Seen, began: list[int]) -> dict[str, Tensor]:
        """The records of this decision; the next one begins."""
        called = torch.zeros_like(state.known)
        called[began] = True
        info = {"planner_called": called} | recorded(seen, state.plan, state.position, state.depth, state.known)
        later = {"position": state.position + 1, "depth": state.depth + 1, "z_pred": seen.ahead}
        self._state, self._decision = dataclasses.replace(state, **later), self._decision + 1
        return info

    def _delay_of(self, row: int) -> int:
        return self._delays(self._solves[row], self._generators and self._generators[row])


def recorded(seen: Seen, plan: Tensor, position: Tensor, depth: Tensor, known: Tensor) -> dict[str, Tensor]:
    """The records of a decision, each (B,), that what is seen and `State` tell; all but whether a solve was begun."""
    unseen = ~known | (depth == 0)  # nothing was predicted for it
    return {
        "fallback": ~(known & (position < plan.shape[1])),
        "refined": torch.zeros_like(known),
        "depth": depth.masked_fill(~seen.acts, 0),
        "plan_age": depth.float().masked_fill(~known, torch.nan),
        "mismatch": seen.mismatch.masked_fill(unseen, torch.nan),
        "score": seen.score.masked_fill(unseen, torch.nan),
        "delta_abs": seen.delta,
    }


def _encode(wm: WorldModel, obs: Tensor) -> tuple[Tensor, Tensor]:
    """The latents, and whether all observations are finite."""
    return wm.encode(obs), torch.isfinite(obs).all()


def _look(wm: WorldModel, corrector, gate, draft, obs, z_pred, plan, position, depth, known, arrived, history) -> Seen:
    """All that a decision takes in the foreground: observations (B, obs_dim), what `State` has, and whose plan has
    arrived just now and may be dropped, arrived (B,), to a `Seen`."""
    z = wm.encode(obs)
    mismatch = total_variation(z, z_pred, wm.config.simnorm_dim)
    score = torch.full_like(mismatch, torch.nan)
    if gate is not None:
        first, a_policy = plan[:, 0], wm.policy(z)[0]
        score = gate.score(wm, Look(z, z_pred, mismatch, first, a_policy, first))
        dropped = arrived & (score > gate.threshold)
        position = position.masked_fill(dropped, plan.shape[1])  # nothing is left of it
        z_pred = torch.where(dropped.unsqueeze(-1), z, z_pred)
    action, acts, delta, history = _acting(wm, corrector, draft, z, z_pred, plan, position, depth, known, history)
    sound = torch.isfinite(obs).all() & torch.isfinite(action).all()
    ahead = wm.next(z_pred, action)
    return Seen(z, z_pred, ahead, position, history, action, acts, delta, mismatch, score, sound)


def _imagined(wm: WorldModel, corrector, draft, z, z_pred, plan, position, depth, known, history):
    """One decision with the model as the world: the next z and z_pred (B, L), and the history."""
    action, _, _, history = _acting(wm, corrector, draft, z, z_pred, plan, position, depth, known, history)
    return wm.next(z, action), wm.next(z_pred, action), history


def _acting(wm: WorldModel, corrector, draft, z, z_pred, plan, position, depth, known, history):
    """The action (B, A) at z (B, L), whether it comes of a plan (B,), its distance to the plan's (B,), the history."""
    a_policy = wm.policy(z)[0]
    a_plan, acts = planned(wm, corrector is not None and draft is None, z_pred, plan, position, known)
    repaired, depth = a_plan, depth.clamp(max=MAX_DEPTH)  # no corrector knows deeper ones
    if history is not None:
        history = appended(history, token(z, z_pred, a_plan, depth))
    if corrector is not None:
        repaired = corrector(z, z_pred, a_plan, a_policy, depth, history)
    action = torch.where(acts.unsqueeze(-1), repaired, at_once(wm, draft, z, a_policy))
    delta = (repaired - a_plan).abs().mean(-1).masked_fill(~acts, 0.0)
    return action, acts, delta, history


def planned(wm, goes_on: bool, z_pred, plan, position, known) -> tuple[Tensor, Tensor]:
    """What the plan has for this decision (B, A), and where it acts (B,). Beyond its end it does where it `goes_on`:
    with the prior's action inside the model."""
    horizon = plan.shape[1]
    index = position.clamp(max=horizon - 1).view(-1, 1, 1).expand(-1, 1, plan.shape[2])
    a_plan = plan.gather(1, index).squeeze(1)
    left = known & (position < horizon)
    if not goes_on:
        return a_plan, left
    return torch.where(left.unsqueeze(-1), a_plan, wm.policy(z_pred)[0]), known
