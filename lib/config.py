"""Typed settings: where data is kept, model sizes, planner budgets."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class ConfigError(ValueError):
    """A setting is wrong; the message says which, where, and what is allowed."""


def quoted(value) -> str:
    """`repr` of what somebody gave, without its middle where a sentence has no room for it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-20:]}"


def one_of(name: str, value: str, allowed) -> str:
    """Return `value` if it is allowed, else raise a `ConfigError` that suggests the nearest allowed names."""
    allowed = list(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value).lower(), [str(a) for a in allowed], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"{name}={quoted(value)} is not known; use one of: {', '.join(str(a) for a in allowed)}.{hint}")


def data_folder(kind: str) -> Path:
    """Where "teachers" or "cache" are: what SPECULATIVE_TDMPC2_TEACHERS or …_CACHE names, else in the checkout's data/,
    or below the user's cache when the package is installed elsewhere."""
    if named := os.environ.get(f"SPECULATIVE_TDMPC2_{kind.upper()}"):
        return Path(os.path.expanduser(named)).resolve()
    data = Path(__file__).resolve().parents[1] / "data"
    return (data if (data / "teachers").is_dir() else _cache(can_be_written)) / kind


def compiled_folder() -> Path:
    """Where compiled code is kept: inductor/ of the folder that SPECULATIVE_TDMPC2_CACHE names, else of the user's
    cache, which all checkouts share; of the temporary folder where those cannot be written, or told to a compiler."""

    def usable(folder: Path) -> bool:
        return is_plain(folder) and can_be_written(folder)

    named = os.environ.get("SPECULATIVE_TDMPC2_CACHE") and data_folder("cache")
    return (named if named and usable(named) else _cache(usable)) / "inductor"


def is_plain(path: Path | str) -> bool:
    """Whether a command line can hold a path as it is: torch does not quote those that it calls C++ compilers with."""
    try:
        return os.name == "nt" or shlex.split(str(path)) == [str(path)]
    except ValueError:
        return False


def _cache(good: Callable[[Path], bool]) -> Path:
    """This package's folder in the user's cache where that is good, else in the temporary folder."""
    homes = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("XDG_CACHE_HOME", "Library/Caches")}
    variable, below_home = homes.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    named = os.environ.get(variable, "")
    home = Path(named if os.path.isabs(named) else os.path.expanduser(f"~/{below_home}"), "speculative-tdmpc2")
    return home if good(home) else _temporary(tempfile.gettempdir())


@functools.cache
def _temporary(folder: str) -> Path:
    """This user's own cache in the temporary folder; one of this process where another user has made one of its name,
    as what is kept there will be run."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    kept = Path(folder, f"speculative-tdmpc2-{user}")
    return kept if can_be_written(kept) and kept.stat().st_uid == user else Path(tempfile.mkdtemp(dir=folder))


def can_be_written(folder: Path) -> bool:
    """Whether there is such a folder that can be written to; it is made where it is missing."""
    with contextlib.suppress(OSError):
        if folder.is_absolute():  # not "~/.cache", of a user who has no home
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder.is_absolute() and os.access(folder, os.W_OK)


# --------------------------------------------------------------------------------------------------- world model

# Widths of the official agent (TD-MPC2, Hansen et al. 2024, appendix "model sizes").
MODEL_SIZES = {
    "1m": dict(enc_dim=256, mlp_dim=384, latent_dim=128, num_enc_layers=2, num_q=2),
    "5m": dict(enc_dim=256, mlp_dim=512, latent_dim=512, num_enc_layers=2, num_q=5),
    "19m": dict(enc_dim=1024, mlp_dim=1024, latent_dim=768, num_enc_layers=3, num_q=5),
    "48m": dict(enc_dim=1792, mlp_dim=1792, latent_dim=768, num_enc_layers=4, num_q=5),
    "317m": dict(enc_dim=4096, mlp_dim=4096, latent_dim=1376, num_enc_layers=5, num_q=8),
}


@dataclass(frozen=True)
class WorldModelConfig:
    """Shapes of a TD-MPC2 world model.

    `obs_dim` and `action_dim` are the task's own. Weights trained on many tasks take wider, zero-padded inputs:
    their first layers have `obs_padding` and `action_padding` inputs more.
    """

    obs_dim: int
    action_dim: int
    enc_dim: int
    mlp_dim: int
    latent_dim: int
    num_enc_layers: int
    num_q: int
    num_bins: int = 101
    bin_limit: float = 10.0  # bins span [-bin_limit, bin_limit] in symlog space
    simnorm_dim: int = 8
    obs_padding: int = 0
    action_padding: int = 0
    q_dropout: float = 0.01
    log_std_min: float = -10.0
    log_std_max: float = 2.0
    discount: float = 0.99
    episodic: bool = False  # has a termination head, for tasks whose episodes can end early

    @classmethod
    def from_size(cls, size: str, obs_dim: int, action_dim: int, **changes) -> WorldModelConfig:
        return cls(obs_dim=obs_dim, action_dim=action_dim, **MODEL_SIZES[one_of("size", size, MODEL_SIZES)], **changes)


def discount_for(episode_length: int) -> float:
    """Discount from the episode length in decisions (official heuristic: 0.99 for 500)."""
    fraction = episode_length / 5
    return min(max((fraction - 1) / fraction, 0.95), 0.995)


# ------------------------------------------------------------------------------------------------------- planner

# What is larger is a slip of the keyboard, and would end in an allocator's error, or never.
LARGEST = {"horizon": 500, "samples": 32_768, "iterations": 1_000}


@dataclass(frozen=True)
class PlannerConfig:
    """Budget and constants of MPPI (TD-MPC2 paper, section 3 and table of hyper-parameters).

    `action_selection`: "mean" executes the weighted mean of the elites (labels, evaluation); "sample" executes one
    elite drawn by its weight, as the official code does. `mode` and `dtype` are how the same algorithm is executed:
    "eager", "compiled", "cudagraph", or "auto" (CUDA graphs on a GPU, compiled on a CPU where a C++ compiler is found);
    matrix products in "float32" or "bfloat16", sums and norms always in float32.
    """

    horizon: int = 3
    samples: int = 512
    iterations: int = 6
    elites: int = 64
    policy_samples: int = 24
    temperature: float = 0.5
    min_std: float = 0.05
    max_std: float = 2.0
    action_selection: str = "mean"
    mode: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        one_of("action_selection", self.action_selection, ("mean", "sample"))
        one_of("mode", self.mode, ("auto", "eager", "compiled", "cudagraph"))
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        for name in ("horizon", "samples", "iterations", "elites"):
            if getattr(self, name) < 1:
                raise ConfigError(f"PlannerConfig.{name}={getattr(self, name)} must be at least 1.")
        for name, most in LARGEST.items():
            if getattr(self, name) > most:
                raise ConfigError(f"PlannerConfig.{name}={getattr(self, name)} must be at most {most:,}.")
        if not 0 <= self.policy_samples <= self.samples:
            raise ConfigError(
                f"PlannerConfig.policy_samples={self.policy_samples} must lie in 0…samples={self.samples}."
            )
        if self.elites > self.samples:
            raise ConfigError(f"PlannerConfig.elites={self.elites} exceeds samples={self.samples}.")
        if not 0 < self.min_std <= self.max_std < math.inf:
            raise ConfigError(f"PlannerConfig needs 0 < min_std ≤ max_std, not {self.min_std} and {self.max_std}.")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"PlannerConfig.temperature={self.temperature} must be positive and finite.")

    @classmethod
    def standard(cls, action_dim: int, **changes) -> PlannerConfig:
        """The official budget: 512 × 6, and 8 iterations from 20 action dimensions up."""
        return cls(**{"iterations": 8 if action_dim >= 20 else 6, **changes})

    @classmethod
    def budget(cls, samples: int, iterations: int, **changes) -> PlannerConfig:
        """A smaller planner in the official proportions: elites N/8, policy samples N/4 up to 24."""
        return cls(
            **{
                "samples": samples,
                "iterations": iterations,
                "elites": max(samples // 8, 1),
                "policy_samples": min(samples // 4, 24),
                **changes,
            }
        )

    @property
    def model_evaluations(self) -> int:
        """Latent steps of one solve: samples × iterations × horizon."""
        return self.samples * self.iterations * self.horizon


def as_dict(config) -> dict:
    """A dataclass as plain values for JSON (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
