"""Drafts: networks distilled from the planner that act at once, a gate that doubts them, and who plans then.

    draft = load_network("walker-walk-1m-1-distilled.safetensors")          # lib.weights.distilled
    action, doubt = draft(z, a_policy)                        # (B, L), (B, A) -> (B, A) in [−1, 1], (B,)

    controller = DraftController(wm, draft)                   # never plans
    controller = DraftController(wm, draft, MPPI(wm, config), DraftGate(doubt=0.1, mismatch=0.2))

It is speculative decoding's pattern: a cheap draft, a check, and the expensive model only where the check fails.
`lib.distil.labels` collects what a draft learns from, `lib.distil.draft_training` trains it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from lib.compilation import prepared, resolve_mode
from lib.config import ConfigError
from lib.planner import MPPI
from lib.protocols import answered, one_each, rows_of, unsound
from lib.world_model import EnsembleLinear, WorldModel, mlp, total_variation

DROPOUT = 0.1  # on the first layer of each member
SCORES = ("doubt", "value", "mismatch")


class Draft(nn.Module):
    """An ensemble of small networks that read the latent and the policy prior's action, and repair the latter.

    Each of the `members` gives `modes` actions with a weight each. The action is the members' mean where they have one
    mode; with several, that of the heaviest mode of all: the mean of two good actions may be a bad one. Its doubt is
    how far the members' actions lie apart. What is added to the prior's action is zero before training.
    """

    arch = "ensemble"

    def __init__(self, latent_dim: int, action_dim: int, width: int = 256, members: int = 3, modes: int = 1):
        super().__init__()
        self.latent_dim, self.action_dim, self.width, self.members, self.modes = (
            latent_dim, action_dim, width, members, modes,
        )  # fmt: skip
        layers = [(latent_dim + action_dim, width), (width, width), (width, width // 2)]
        self.layers = nn.ModuleList(
            EnsembleLinear(members, *shape, dropout=DROPOUT * (i == 0)) for i, shape in enumerate(layers)
        )
        self.head = EnsembleLinear(members, width // 2, modes * (action_dim + 1), final=True)
        for layer in self.layers:
            nn.init.trunc_normal_(layer.weight, std=layer.weight.shape[2] ** -0.5)
        nn.init.zeros_(self.head.weight)
        if modes > 1:  # or all would stay the same
            nn.init.trunc_normal_(self.head.weight, std=0.1 * (width // 2) ** -0.5)

    @property
    def shape(self) -> dict[str, int]:
        """The arguments that make a draft of the same shape."""
        return {name: getattr(self, name) for name in ("latent_dim", "action_dim", "width", "members", "modes")}

    def components(self, z: Tensor, a_policy: Tensor) -> tuple[Tensor, Tensor]:
        """Every mode of every member: actions (M, B, K, A) in [−1, 1] and log weights (M, B, K).

        z (B, L) and a_policy (B, A), or each member's own (M, B, ·).
        """
        x = torch.cat([z, a_policy], -1)
        for layer in self.layers:
            x = layer(x)
        x = self.head(x).unflatten(-1, (self.modes, self.action_dim + 1))
        action = a_policy.unsqueeze(-2) + 2.0 * x[..., :-1].tanh()
        bounded = action.clamp(-1, 1)
        if self.training:  # the gradient passes the clamp: else an action pushed past its bound could never come back
            bounded = action + (bounded - action).detach()
        return bounded, x[..., -1].log_softmax(-1)

    def forward(self, z: Tensor, a_policy: Tensor) -> tuple[Tensor, Tensor]:
        """The action (B, A), and the doubt (B,): the mean absolute deviation of the members' actions from it."""
        actions, weights = self.components(z, a_policy)
        if self.modes == 1:
            own = actions.squeeze(2)  # (M, B, A)
            action = own.mean(0)
        else:
            best = weights.argmax(-1)  # (M, B)
            own = actions.gather(2, best[..., None, None].expand(-1, -1, 1, self.action_dim)).squeeze(2)
            surest = weights.amax(-1).argmax(0)  # (B,)
            action = own.gather(0, surest.view(1, -1, 1).expand(1, -1, self.action_dim)).squeeze(0)
        return action, (own - action).abs().mean((0, 2))


class PriorDraft(nn.Module):
    """A policy prior that has learnt on, as a draft: its own action for the latent, without doubt."""

    arch = "prior"

    def __init__(self, latent_dim: int, action_dim: int, width: int):
        super().__init__()
        self.latent_dim, self.action_dim, self.width = latent_dim, action_dim, width
        self.pi = mlp([latent_dim, width, width, 2 * action_dim])

    @property
    def shape(self) -> dict[str, int]:
        """The arguments that make a draft of the same shape."""
        return {name: getattr(self, name) for name in ("latent_dim", "action_dim", "width")}

    def forward(self, z: Tensor, a_policy: Tensor) -> tuple[Tensor, Tensor]:
        """The mean action (B, A) at z (B, L), and zeros (B,)."""
        action = self.pi(z).chunk(2, -1)[0].tanh()
        return action, torch.zeros_like(action[:, 0])


DRAFTS = {kind.arch: kind for kind in (Draft, PriorDraft)}

# ------------------------------------------------------------------------------------------------------------- gate


class DraftGate(nn.Module):
    """Asks the planner where any of three scores passes its threshold; infinity asks for nothing. Scores are computed
    as far as they are in `looks`, by default those with a threshold; the others are NaN.

    - `doubt`: how far the ensemble's actions lie apart;
    - `value`: what the draft's action loses against the policy prior's by the model's own value, the larger of Q and of
      a look-ahead of one step, r + γ (1 − p) Q(z', π(z')), p the probability that the episode has ended at z';
    - `mismatch`: the total variation between the latent that came and the one that the model had predicted, which sees
      a world that is not the training's. A plan that is being executed holds as long as this one does.
    """

    kind = "draft"  # what results call it

    def __init__(
        self,
        doubt: float = torch.inf,
        value: float = torch.inf,
        mismatch: float = torch.inf,
        looks: tuple[str, ...] | None = None,
    ):
        super().__init__()
        thresholds = torch.tensor([float(doubt), float(value), float(mismatch)])
        self.register_buffer("thresholds", thresholds)
        given = tuple(name for name, t in zip(SCORES, thresholds.tolist(), strict=True) if t < torch.inf)
        self.looks = given if looks is None else looks

    def scores(self, wm: WorldModel, z: Tensor, z_pred: Tensor, a_policy: Tensor, action: Tensor, doubt: Tensor):
        """The scores (B, 3) in the order of `SCORES`. z, z_pred (B, L); a_policy, action (B, A); doubt (B,)."""
        found = dict.fromkeys(SCORES, torch.full_like(doubt, torch.nan)) | {"doubt": doubt}
        if "value" in self.looks:
            both, now = torch.stack([a_policy, action]), z.expand(2, *z.shape)  # (2, B, ·)
            after, goes_on = wm.next(now, both), 1.0
            if wm.config.episodic:
                goes_on = 1 - wm.termination(after)
            ahead = wm.q(after, wm.policy(after)[0]).mean(0)
            ahead = wm.reward(now, both) + wm.config.discount * goes_on * ahead
            value = wm.q(now, both).mean(0)
            found["value"] = torch.maximum(value[0] - value[1], ahead[0] - ahead[1])
        if "mismatch" in self.looks:
            found["mismatch"] = total_variation(z, z_pred, wm.config.simnorm_dim)
        return torch.stack(list(found.values()), -1)

    def forward(self, scores: Tensor) -> Tensor:
        """Where the planner is asked (B,), by scores (B, 3)."""
        return (scores > self.thresholds).any(-1)


# ------------------------------------------------------------------------------------------------------- controller


class DraftController:
    """Acts as the draft says; with a planner and a gate, plans where the gate asks for it.

    A plan's actions are executed for `execution_horizon` decisions, by default for all that it has, unless the mismatch
    passes the gate's threshold before. The planner starts from what is left of the latest plan, and behind that from
    the draft's own actions inside the model. Records of a decision (B,): planner_called; fallback, the same; depth, the
    step of a plan that is executed, else 0; delta_abs, the mean absolute difference of the action to the draft's;
    doubt; value and mismatch, NaN where no gate looks.
    """

    def __init__(
        self,
        wm: WorldModel,
        draft: nn.Module,
        planner: MPPI | None = None,
        gate: DraftGate | None = None,
        execution_horizon: int = 0,
        mode: str = "auto",
    ):
        if (draft.latent_dim, draft.action_dim) != (wm.latent_dim, wm.action_dim):
            raise ConfigError(
                f"the draft was made for latent {draft.latent_dim} and {draft.action_dim} actions, the world model has "
                f"{wm.latent_dim} and {wm.action_dim}; train one for this teacher."
            )
        if (planner is None) != (gate is None) or (planner and planner.wm is not wm):
            raise ConfigError("a draft needs a planner of its own world model and a gate, or neither.")
        horizon = planner.config.horizon if planner else 1
        if not 0 <= execution_horizon <= horizon:
            raise ConfigError(f"execution_horizon={execution_horizon} must lie between 1 and the plan's {horizon}.")
        self.wm, self.draft, self.planner, self.gate = wm, draft, planner, gate
        self.execution_horizon = execution_horizon or horizon
        mode = planner.mode if planner else resolve_mode(mode, wm.device)
        self._look = prepared(mode, functools.partial(_look, wm, draft, gate), range(4))
        self._batch = 0  # `reset` begins

    def reset(self, batch_size: int = 1, generators: list[torch.Generator] | None = None) -> None:
        """Start `batch_size` episodes: no plan, and the rows' own random streams."""
        self._generators, self._batch, self._decision = one_each(generators, batch_size), batch_size, 0
        z = torch.zeros(batch_size, self.wm.latent_dim, device=self.wm.device)
        # The latest plan, how many decisions ago it was made (those of its length or more: nothing is left of it), and
        # whether it is executed.
        horizon = self.planner.config.horizon if self.planner else 1
        self._plan = z.new_zeros(batch_size, horizon, self.wm.action_dim)
        self._age = torch.full((batch_size,), horizon, device=z.device)
        self._held = self._age < 0
        # What the next latent is predicted from, and whether it is: nothing precedes the first decision.
        self._from, self._executed, self._predicted = z, self._plan[:, 0].clone(), self._age < 0

    def keep(self, rows: list[int]) -> None:
        """Go on with only these rows of the batch (the others' episodes have ended)."""
        self._batch, self._generators = len(rows), self._generators and [self._generators[i] for i in rows]
        for name in ("_plan", "_age", "_held", "_from", "_executed", "_predicted"):
            setattr(self, name, getattr(self, name)[rows])

    @torch.no_grad()
    def act(self, obs) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, A) for observations (B, obs_dim); `ValueError` when one of either is not finite."""
        obs, alone = rows_of(obs, self._batch, self.wm.device)
        z, drafted, scores, sound = self._look(obs, self._from, self._executed, self._predicted)
        if not sound:
            raise ValueError(unsound(obs))
        called, action, depth = torch.zeros_like(self._predicted), drafted, torch.zeros_like(self._age)
        if self.gate is not None:
            holds = self._held & (self._age < self.execution_horizon) & ~(scores[:, 2] > self.gate.thresholds[2])
            called = ~holds & self.gate(scores)
            depth = self._age.masked_fill(~holds, 0)
            action = torch.where(holds.unsqueeze(-1), plan_step(self._plan, depth), drafted)
            if called.any():
                action[called] = self._planned(z, called)
            self._held, self._age = holds | called, (self._age + 1).clamp(max=self._plan.shape[1])
            self._from, self._executed, self._predicted = z, action.clone(), torch.ones_like(called)
        self._decision += 1
        flags = {"planner_called": called, "fallback": called, "refined": torch.zeros_like(called)}
        numbers = {"depth": depth, "delta_abs": (action - drafted).abs().mean(-1)}
        return answered(action, flags | numbers | dict(zip(SCORES, scores.unbind(-1), strict=True)), alone)

    def _planned(self, z: Tensor, rows: Tensor) -> Tensor:
        """Plans for the rows (B,) that are true: queued, and their first actions."""
        start = planner_start(self.wm, self.draft, self._plan[rows], self._age[rows], z[rows])
        self.planner.reset_streams(self._decision)  # so that a row's Q heads do not depend on when others plan
        generators = self._generators and [self._generators[i] for i in rows.nonzero().flatten().tolist()]
        plan = self.planner(z[rows], start, generators)
        self._plan[rows] = plan.actions
        self._age = self._age.masked_fill(rows, 0)
        return plan.actions[:, 0]


def planner_start(wm: WorldModel, draft: nn.Module, plan: Tensor, age: Tensor, z: Tensor) -> Tensor:
    """What a planner at z (B, L) starts from, (B, H, A): what is left of plans (B, H, A) of an age (B,), and behind
    that the draft's own actions inside the model."""
    start, horizon = [], plan.shape[1]
    for step in range(horizon):
        there = (age + step < horizon).unsqueeze(-1)
        left = plan_step(plan, (age + step).clamp(max=horizon - 1))
        start.append(torch.where(there, left, draft(z, wm.policy(z)[0])[0]))
        z = wm.next(z, start[-1])
    return torch.stack(start, 1)


def plan_step(plan: Tensor, index: Tensor) -> Tensor:
    """The actions (B, A) of plans (B, H, A) at each row's own step (B,)."""
    return plan.gather(1, index.view(-1, 1, 1).expand(-1, 1, plan.shape[2])).squeeze(1)


def _look(wm: WorldModel, draft: Draft, gate: DraftGate | None, obs, before, executed, predicted):
    """What a decision without planning takes: obs (B, obs_dim), the latent (B, L) that the prediction of this one
    starts from, the action executed there (B, A), and whether there is such a one (B,).

    Gives the latents, the draft's action, its scores (B, 3), and whether all that acts is finite.
    """
    z = wm.encode(obs)
    a_policy = wm.policy(z)[0]
    action, doubt = draft(z, a_policy)
    sound = torch.isfinite(obs).all() & torch.isfinite(action).all()
    if gate is None:
        nothing = torch.full_like(doubt, torch.nan)
        return z, action, torch.stack([doubt, nothing, nothing], -1), sound
    z_pred = torch.where(predicted.unsqueeze(-1), wm.next(before, executed), z)
    return z, action, gate.scores(wm, z, z_pred, a_policy, action, doubt), sound
