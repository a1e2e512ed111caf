"""Model error: how far open-loop prediction in the latent space drifts from what is then observed.

    wm, episodes = load_world_model("walker-walk-1m-1"), load_episodes("test_buffer.safetensors")
    rows = error_rows(*predictions(wm, episodes, horizon=12), on_policy=True)    # one for each step ahead

From an observed state the world model predicts up to `horizon` steps ahead under the actions that were then executed,
without another look. All steps start from the same states: those that have `horizon` decisions of their episode left.
`lib.study.model_quality.drift_study` does this for a teacher, its snapshots and several buffers of episodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lib.study.stats.intervals import MIN_INTERVAL, studentised_ends
from lib.teachers.replay import Episode
from lib.world_model import WorldModel, total_variation

BATCH = 256  # start states predicted from at once
CHUNK = 4096  # observations encoded at once
TAIL = 0.05  # largest share that the model's own value may have in a return-to-go


@torch.no_grad()
def predictions(
    wm: WorldModel, episodes: list[Episode], horizon: int, batches: int = 100, seed: int = 0, what: str = ""
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Every start state's episode (n,), and what was predicted from it, compared with what came: name → (n, horizon).

    Column k − 1 belongs to step k ahead, ẑ_k = d(ẑ_{k−1}, a_{k−1}) from ẑ_0 = z_0, the encoded observation:

    - `mse`, `tv`, `cosine`: of ẑ_k and z_k. The first is the consistency loss of training (TD-MPC2, section 3.1)
      before it is weighted by step; the second the mean total-variation distance of their simplices, in [0, 1].
    - `persistence_*` compares z_0 with z_k, and `mean_latent_*` the mean latent of the buffer: what is known without
      a model, and the best constant.
    - `reward_mse`: squared error of the reward of step k, read from ẑ_{k−1} and a_{k−1}; `reward`: the true one.
    - `value_error`: |V(ẑ_k) − V(z_k)|, where V(z) is the mean of Q(z, π(z)) over heads, what a plan ends with;
      `value`: V(z_k).
    - `return_error`, `return_error_encoded`: |V(ẑ_k) − G_k| and |V(z_k) − G_k|. The return-to-go G_k is the discounted
      sum of the rewards of the rest of the episode and, as time limits are no ends, V of its last state. nan where that
      state's weight γ^rest exceeds `TAIL` = 5 %. V values the policy prior, G what the buffer's player did.

    At most `batches` × 256 start states: all there are, or that many drawn without replacement by `seed`.
    """
    flat, device = Flat.of(episodes, horizon), wm.device
    starts, limit = flat.starts, batches * BATCH
    if len(starts) > limit:
        starts = np.sort(np.random.default_rng(seed).choice(starts, limit, replace=False))
    z = torch.cat([wm.encode(part.to(device)) for part in torch.from_numpy(flat.obs).split(CHUNK)])
    values = torch.cat([_value(wm, part) for part in z.split(CHUNK)])
    returns = flat.returns(values.double().cpu().numpy(), wm.config.discount)
    actions, rewards, togo = (torch.from_numpy(x).to(device) for x in (flat.actions, flat.rewards, returns))
    constant = z.double().mean(0).float()
    found: list[dict[str, Tensor]] = []
    parts = torch.from_numpy(starts).to(device).split(BATCH)
    for start in tqdm(parts, desc=what, unit="batch", disable=not what, mininterval=2):
        first = predicted = z[start]
        steps = []
        for k in range(horizon):
            action, reward = actions[start + k], rewards[start + k]
            reward_error = wm.reward(predicted, action) - reward
            predicted = wm.next(predicted, action)
            true, value, togo_k = z[start + k + 1], values[start + k + 1], togo[start + k + 1]
            estimate = _value(wm, predicted)
            steps.append(
                _distances(predicted, true)
                | {"cosine": F.cosine_similarity(predicted, true, dim=-1)}
                | _distances(first, true, "persistence_")
                | _distances(constant, true, "mean_latent_")
                | {"reward_mse": reward_error.square(), "reward": reward}
                | {"value_error": (estimate - value).abs(), "value": value}
                | {"return_error": (estimate - togo_k).abs(), "return_error_encoded": (value - togo_k).abs()}
            )
        found.append({name: torch.stack([step[name] for step in steps], 1) for name in steps[0]})
    columns = {name: torch.cat([part[name] for part in found]).double().cpu().numpy() for name in found[0]}
    return flat.episode[starts], columns


@dataclass
class Flat:
    """Episodes end to end: obs (N, obs_dim); actions (N, A) and rewards (N,), zero at an episode's last observation;
    `episode` (N,), which one a row is of, `rest` (N,), decisions that it has left; rows that may be `starts`."""

    obs: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    episode: np.ndarray
    rest: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, episodes: list[Episode], horizon: int) -> Flat:
        rest = np.concatenate([np.arange(len(e), -1, -1) for e in episodes])
        return cls(
            np.concatenate([e.obs for e in episodes]).astype(np.float32),  # files may hold other floats
            np.concatenate([np.pad(e.actions, ((0, 1), (0, 0))) for e in episodes]).astype(np.float32),
            np.concatenate([np.pad(e.rewards, (0, 1)) for e in episodes]).astype(np.float32),
            np.repeat(np.arange(len(episodes)), [len(e) + 1 for e in episodes]),
            rest,
            np.flatnonzero(rest >= horizon),
        )

    def returns(self, values: np.ndarray, discount: float) -> np.ndarray:
        """Returns-to-go (N,) that end in the `values` (N,) of last states; nan where these count for too much."""
        togo = values.copy()
        for row in range(len(togo) - 2, -1, -1):
            if self.rest[row]:
                togo[row] = self.rewards[row] + discount * togo[row + 1]
        return np.where(discount**self.rest <= TAIL, togo, math.nan)


def _value(wm: WorldModel, z: Tensor) -> Tensor:
    """Mean value of the policy prior's mean action over the Q heads. (B, L) -> (B,)."""
    return wm.q(z, wm.policy(z)[0]).mean(0)


def _distances(z: Tensor, true: Tensor, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}mse": (z - true).square().mean(-1), f"{prefix}tv": total_variation(z, true)}


def error_rows(episode: np.ndarray, columns: dict[str, np.ndarray], on_policy: bool) -> list[dict]:
    """One row per step ahead from what `predictions` returns. What cannot be known is None.

    Means over start states under the names of the columns; `mse_std`, `mse_min` and `mse_max` are over start states
    too. `share` is the mse as a part of that of the mean latent. `mse_low` to `mse_high` and `share_low` to
    `share_high` are 95 % bootstrap intervals over episodes, None for a single one. `growth` is the factor from the
    step before. `reward_variance` is the error of always predicting the step's mean reward. The errors against returns
    are None unless the model measured is the player's (`on_policy`): else they would compare two ways to act.
    """
    mse, means = columns["mse"], {name: x.mean(0) for name, x in columns.items() if not name.startswith("return")}
    known = np.isfinite(columns["return_error"]) & on_policy  # (n, horizon)
    numbers = sorted(set(episode.tolist()))
    sums = [
        np.stack([x[episode == number].sum(0) for number in numbers], 1)  # (horizon, episodes)
        for x in (mse, np.ones_like(mse), columns["mean_latent_mse"])
    ]
    unknown = np.full((2, mse.shape[1]), math.nan)
    low, high = studentised_ends(sums[0], sums[1]) if len(numbers) >= MIN_INTERVAL else unknown
    share_low, share_high = studentised_ends(sums[0], sums[2]) if len(numbers) >= MIN_INTERVAL else unknown
    table = {
        "step": np.arange(1, mse.shape[1] + 1),
        "mse": means.pop("mse"),
        "mse_std": mse.std(0, ddof=1) if len(mse) > 1 else unknown[0],
        "mse_min": mse.min(0),
        "mse_max": mse.max(0),
        "mse_low": low,
        "mse_high": high,
        **{name: mean for name, mean in means.items() if name not in ("reward", "value")},
        "reward_variance": columns["reward"].var(0),
        "value_mean": means["value"],
        **{
            name: _ratio(np.where(known, columns[name], 0).sum(0), known.sum(0))
            for name in ("return_error", "return_error_encoded")
        },
        "return_states": known.sum(0),
        "growth": np.append(math.nan, _ratio(mse.mean(0)[1:], mse.mean(0)[:-1])),
        "share": _ratio(mse.mean(0), means["mean_latent_mse"]),
        "share_low": share_low,
        "share_high": share_high,
    }
    about = {"batches": math.ceil(len(mse) / BATCH), "starts": len(mse), "episodes": len(numbers)}
    rows = zip(*(column.tolist() for column in table.values()), strict=True)
    return [{k: None if v != v else v for k, v in zip(table, row, strict=True)} | about for row in rows]


def growth_exponent(mse) -> float:
    """p of mse ∝ stepᵖ, by least squares over the logarithms of steps 1, 2, …; nan for one step or an mse of 0.

    About 2 where every step adds the same error, 1 where errors are independent of each other, below 1 where they
    level off because latents are bounded.
    """
    mse = np.asarray(mse, dtype=float)
    if len(mse) < 2 or not (mse > 0).all():
        return math.nan
    return float(np.polyfit(np.log(np.arange(1, len(mse) + 1)), np.log(mse), 1)[0])


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.where(whole > 0, whole, math.nan)
