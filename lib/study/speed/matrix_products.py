"""The matrix products of one solve, counted and run on their own: what a planner's time is measured against.

    products = solve_products(wm.config, PlannerConfig.standard(6), batch=1)
    flops(products) / 1e9                                  # GFLOP of one solve
    floor = matrix_floor(products, torch.float32, "cpu")   # floor() runs them and nothing else

Symbols: B latents, N samples of which P come from the policy and S = N − P are drawn, H horizon, L latent, A action
dimensions, M hidden width (mlp_dim). A product is b times (m × k) · (k × n). Only torch is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from lib.compilation import Captured
from lib.config import PlannerConfig, WorldModelConfig


class Product(NamedTuple):
    """One call of `mm` (b = 1) or `bmm`: b × (m, k) · (k, n). `layer` names the weight it multiplies with."""

    layer: str
    b: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        return 2 * self.b * self.m * self.k * self.n


def flops(products: list[Product]) -> int:
    """Floating-point operations of all products; a multiplication and an addition are two."""
    return sum(p.flops for p in products)


def solve_products(c: WorldModelConfig, p: PlannerConfig, batch: int = 1) -> list[Product]:
    """The fewest products that one solve needs, in their order.

    Both readers of (z, a) share one first product, z_0's part of it is computed once per row, policy samples are
    rolled once per solve, only the two drawn Q heads are evaluated, and padding columns are dropped.
    """
    latent, action, hidden, bins = c.latent_dim, c.action_dim, c.mlp_dim, c.num_bins
    rest = p.samples - p.policy_samples

    def policy(rows):
        return _mlp("pi", rows, [latent, hidden, hidden, 2 * action])

    def step(rows, from_z0=False):
        """Dynamics and reward. From z_0 on, only the action's part of the first layer differs between samples."""
        first = Product("step.0.a", 1, rows, action, 2 * hidden)
        return [
            first if from_z0 else Product("step.0", 1, rows, latent + action, 2 * hidden),
            Product("dynamics.1", 1, rows, hidden, hidden),
            Product("reward.1", 1, rows, hidden, hidden),
            Product("dynamics.2", 1, rows, hidden, latent),
            Product("reward.2", 1, rows, hidden, bins),
        ]

    def q(rows, heads):
        return [
            Product(f"q{heads}.0", 1, rows, latent + action, heads * hidden),
            Product(f"q{heads}.1", heads, rows, hidden, hidden),
            Product(f"q{heads}.2", heads, rows, hidden, bins),
        ]

    made = [Product("step.0.z", 1, batch, latent, 2 * hidden)]
    if p.policy_samples:
        rows = batch * p.policy_samples
        for t in range(p.horizon):
            made += policy(batch if t == 0 else rows) + step(rows, t == 0)
        made += policy(rows)  # its last latents are the same in every iteration
    for _ in range(p.iterations):
        for t in range(p.horizon):
            made += step(batch * rest, t == 0)
        made += policy(batch * rest) + q(batch * p.samples, 2)
    for _ in range(p.horizon):  # the chosen actions once more: predicted latents and value
        made += step(batch)
    return made + policy(batch) + q(batch, c.num_q)


def twin_products(c: WorldModelConfig, p: PlannerConfig, batch: int = 1) -> list[Product]:
    """The products of `lib.study.speed.official_manner.OfficialPlanner`: all heads, all samples, in every iteration."""
    joined, hidden = c.latent_dim + c.action_dim + c.action_padding, [c.mlp_dim, c.mlp_dim]
    rows = batch * p.samples

    def policy(rows):
        return _mlp("pi", rows, [c.latent_dim, *hidden, 2 * c.action_dim])

    def dynamics(rows):
        return _mlp("dynamics", rows, [joined, *hidden, c.latent_dim])

    made = []
    if p.policy_samples:
        few = batch * p.policy_samples
        made += p.horizon * policy(few) + (p.horizon - 1) * dynamics(few)
    step = _mlp("reward", rows, [joined, *hidden, c.num_bins]) + dynamics(rows)
    q = _mlp("q", rows, [joined, *hidden, c.num_bins], heads=c.num_q)
    return made + p.iterations * (p.horizon * step + policy(rows) + q)


def _mlp(name: str, rows: int, widths: list[int], heads: int = 1) -> list[Product]:
    return [Product(f"{name}.{i}", heads, rows, k, n) for i, (k, n) in enumerate(zip(widths, widths[1:], strict=False))]


# ------------------------------------------------------------------------------------------------------- to be timed


def matrix_floor(products: list[Product], dtype: torch.dtype, device: str = "cpu") -> Callable[[], None]:
    """A function that runs exactly these products into memory set aside before.

    Every layer has a weight of its own, so that they compete for the cache as a model's do. On a GPU the sequence is
    captured as one CUDA graph: else its time would be that of launching kernels.
    """
    memory: dict[tuple, torch.Tensor] = {}

    def tensor(*key):
        if key not in memory:
            shape = key[1:] if key[1] > 1 else key[2:]
            memory[key] = torch.randn(shape, device=device).to(dtype)
        return memory[key]

    calls = []
    for x in products:
        operation = torch.mm if x.b == 1 else torch.bmm
        operands = tensor("in", x.b, x.m, x.k), tensor(x.layer, x.b, x.k, x.n), tensor("out", x.b, x.m, x.n)
        calls.append((operation, *operands))

    @torch.no_grad()
    def run():
        for operation, left, right, out in calls:
            operation(left, right, out=out)
        return ()

    return Captured(run) if torch.device(device).type == "cuda" else run


def ceiling_products(device: str = "cpu") -> list[list[Product]]:
    """Large plain products; the best rate among them is the machine's ceiling."""
    shapes = [(512, 512, 512), (2048, 512, 512), (512, 1024, 512)]
    repeats = 1
    if torch.device(device).type == "cuda":
        shapes, repeats = [*shapes, (4096, 4096, 4096), (8192, 4096, 4096)], 16  # long enough that a launch is nothing
    return [repeats * [Product("ceiling", 1, *shape)] for shape in shapes]
