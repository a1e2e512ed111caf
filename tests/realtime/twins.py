"""The controllers of `lib.realtime` for one episode, in plain words: lists, floats, and no batch."""

import math

import torch

from lib.correctors import appended, token
from tests.tiny import ACTIONS


def distance(z, other):
    """Mean total variation between simplices of eight."""
    simplices = list(zip(z.split(8), other.split(8), strict=True))
    return sum(0.5 * sum(abs(p - q) for p, q in zip(a.tolist(), b.tolist(), strict=True)) for a, b in simplices) / len(
        simplices
    )


def moved(mean, steps, horizon):
    """What is left of a list of actions, with zeros behind, (1, H, A)."""
    left = mean[steps:] if mean else []
    return torch.stack(left + [torch.zeros(ACTIONS)] * (horizon - len(left)))[None]


class RealTimeTwin:
    """Plan for the predicted arrival, act from the present plan. `delays` are those of its solves, one after another.

    What the controller is: `plan` (what is left of the present plan), `mean`, `age` (decisions since its observation),
    `predicted` (latent), `history`, and the solve on its way, `coming`.
    """

    def __init__(self, planner, corrector, threshold, delays, draft, seed):
        self.planner, self.wm, self.corrector, self.draft = planner, planner.wm, corrector, draft
        self.threshold, self.delays, self.generator = threshold, list(delays), torch.Generator().manual_seed(seed)
        self.now, self.plan, self.age, self.coming = 0, None, None, None
        self.mean, self.predicted, self.history = [], None, self.no_history()

    def no_history(self):
        length = getattr(self.corrector, "history_len", 0)
        return torch.zeros(1, length, self.wm.latent_dim + ACTIONS + 1) if length else None

    def foreground(self, z, predicted, plan, age, history):
        """Who acts at z (L,): the action, the depth of who acts (0: nobody's plan), its change, and the history."""
        prior = self.wm.policy(z[None])[0][0]
        drafted = prior if self.draft is None else self.draft(z[None], prior[None])[0][0]
        if plan is None:
            return drafted, 0, 0.0, history
        if plan:
            planned = plan[0]
        elif self.corrector is not None and self.draft is None:
            planned = self.wm.policy(predicted[None])[0][0]
        else:
            return drafted, 0, 0.0, history
        action = planned
        if self.corrector is not None:
            depth = torch.tensor([min(age, 12)])
            if history is not None:
                history = appended(history, token(z[None], predicted[None], planned[None], depth))
            action = self.corrector(z[None], predicted[None], planned[None], prior[None], depth, history)[0]
        return action, age, float((action - planned).abs().mean()), history

    def solve(self, z, steps):
        """A plan from z that starts from the present one, `steps` decisions later: its actions, and its mean."""
        self.planner.reset_streams(self.now)
        solved = self.planner(z[None], moved(self.mean, steps, self.planner.config.horizon), [self.generator])
        return list(solved.actions[0]), list(solved.mean[0])

    def act(self, obs):
        """obs (obs_dim,) -> action (A,), and its records."""
        z = self.wm.encode(obs[None])[0]
        if self.coming and self.coming["arrival"] == self.now:
            self.plan, self.mean, self.predicted, self.age = (self.coming[k] for k in ("plan", "mean", "z", "delay"))
            self.history, score = self.no_history(), distance(z, self.coming["z"])
            if self.threshold is not None and score > self.threshold and self.delays[0] > 0:
                self.plan, self.mean, self.predicted = [], [], z
            mismatch, self.coming = score, None
        else:
            mismatch = math.nan if self.plan is None else distance(z, self.predicted)
        action, depth, change, self.history = self.foreground(z, self.predicted, self.plan, self.age, self.history)
        called, fallback = False, not self.plan
        if self.coming is None:
            called, delay = True, self.delays.pop(0)
            if delay == 0:
                self.plan, self.mean = self.solve(z, 0)
                self.age, self.predicted, self.history = 0, z, self.no_history()
                action, depth, change, mismatch, fallback = self.plan[0], 0, 0.0, math.nan, False
            else:
                there = self.imagined(z, action, delay)
                plan, mean = self.solve(there, delay)
                self.coming = dict(arrival=self.now + delay, delay=delay, z=there, plan=plan, mean=mean)
        records = dict(planner_called=called, fallback=fallback, depth=depth, mismatch=mismatch, delta_abs=change)
        records["plan_age"] = math.nan if self.plan is None else self.age
        self.now += 1
        if self.plan is not None:
            self.predicted, self.age = self.wm.next(self.predicted[None], action[None])[0], self.age + 1
            self.plan, self.mean = self.plan[1:], self.mean[1:]
        return action, records

    def imagined(self, z, action, delay):
        """Where the world will be `delay` decisions after it was at z (L,) and `action` was executed."""
        plan, age, predicted, history = self.plan, self.age, self.predicted, self.history
        for step in range(1, delay + 1):
            z = self.wm.next(z[None], action[None])[0]
            if step == delay:
                return z
            if plan is not None:
                predicted, plan, age = self.wm.next(predicted[None], action[None])[0], plan[1:], age + 1
            action, _, _, history = self.foreground(z, predicted, plan, age, history)


class LateTwin:
    """The first action of the newest plan there is, for the state that it was begun in."""

    def __init__(self, planner, delays, hold, seed):
        self.planner, self.hold, self.delays = planner, hold, iter(delays)
        self.generator = torch.Generator().manual_seed(seed)
        self.now, self.solves = 0, []

    def act(self, obs):
        """obs (obs_dim,) -> action (A,), whether a solve was begun, and the age of what the action knew, or None."""
        z = self.planner.wm.encode(obs[None])[0]
        called = not self.hold or all(s["arrival"] <= self.now for s in self.solves)
        if called:
            there = self.newest()
            mean = there["mean"] if there else []
            self.planner.reset_streams(self.now)
            steps = self.now - there["begun"] if there else 0
            plan = self.planner(z[None], moved(mean, steps, self.planner.config.horizon), [self.generator])
            times = dict(begun=self.now, arrival=self.now + next(self.delays))
            self.solves.append(times | dict(action=plan.actions[0, 0], mean=list(plan.mean[0])))
        there = self.newest()
        action, age = (there["action"], self.now - there["begun"]) if there else (self.prior(z), None)
        self.now += 1
        return action, called, age

    def newest(self):
        return max((s for s in self.solves if s["arrival"] <= self.now), key=lambda s: s["begun"], default=None)

    def prior(self, z):
        return self.planner.wm.policy(z[None])[0][0]
