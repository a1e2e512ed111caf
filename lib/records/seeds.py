"""The seeds of episodes: each purpose has a block of its own, so that what was used to tune is never used to report."""

from __future__ import annotations

from lib.config import ConfigError, one_of

# Disjoint blocks of episode seeds: what was used to tune is never used to report.
SEED_BLOCKS = {
    "train": 0,  # + 1,000,000 × teacher seed: every training run has a block of its own
    "train-eval": 100_000_000,
    "card": 200_000_000,
    "collect": 300_000_000,
    "calibrate": 400_000_000,
    "report": 500_000_000,  # the paper profile's evaluation, and nothing else
    "trial": 700_000_000,  # the quick and smoke profiles' evaluation
    "buffer": 600_000_000,
    "latency": 800_000_000,
    "certify": 900_000_000,  # the tests of `lib.study.certify`, and nothing else
}
SEED_BLOCK_SIZE = 1_000_000


def episode_seeds(purpose: str, count: int, seed: int = 0, first: int = 0) -> list[int]:
    """The first `count` environment seeds for a purpose; `seed` picks an independent block (a teacher's seed, say).

    Raises `ConfigError` for seeds that would reach into the block of another purpose or teacher.
    """
    if not 0 <= seed < 100 or first < 0 or first + count > SEED_BLOCK_SIZE:
        raise ConfigError(
            f"seed={seed} with {first} + {count} episodes leaves its block of seeds; use a seed of 0…99 and "
            f"at most {SEED_BLOCK_SIZE} episodes."
        )
    start = SEED_BLOCKS[one_of("purpose", purpose, SEED_BLOCKS)] + SEED_BLOCK_SIZE * seed + first
    return list(range(start, start + count))
