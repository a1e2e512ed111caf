"""The step that does not plan, by itself: what a robot waits for while a plan is on its way, which never comes.

    foreground("walker-run-1m-1", "delay_aware", steps=100_000)    # {"p50_ms": …, "p999_ms": …, "floor_ms": …}

A step is the whole of `BackgroundController.act` with one plan behind it: encode, compare, correct, predict. It stands
beside its matrix floor, the products of its layers and nothing else, timed in turns with it. Physics is stepped between
steps, as in control, so that weights have to come back into the core's caches.
"""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lib.compilation import resolve_mode
from lib.config import PlannerConfig
from lib.environments import make_env
from lib.planner import MPPI, Plan
from lib.realtime import BackgroundController
from lib.records.seeds import episode_seeds
from lib.rollout import start
from lib.study.arms import network_file
from lib.study.cells import Cell
from lib.study.speed.matrix_products import Product, matrix_floor
from lib.weights.distilled import load_network
from lib.weights.native import load_world_model, teacher_key
from lib.world_model import WorldModel

PATIENT = 10.0  # seconds for the one plan
QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}


class Stopped(MPPI):
    """A planner that is gone for good once it is `stopped`, until it is let `go`."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.stopped, self.go = False, threading.Event()

    def __call__(self, *inputs) -> Plan:
        if self.stopped:
            self.go.wait()
        return super().__call__(*inputs)


def step_products(wm: WorldModel, corrector: nn.Module) -> list[Product]:
    """The products of a step: the encoder, the prior at the real and the predicted latent, corrector and dynamics."""
    parts = {"encoder": wm.encoder, "pi": wm.pi, "pi again": wm.pi, "corrector": corrector, "dynamics": wm.dynamics}
    return [
        Product(f"{name.split()[0]}.{i}", 1, 1, layer.in_features, layer.out_features)
        for name, part in parts.items()
        for i, layer in enumerate(m for m in part.modules() if isinstance(m, nn.Linear))
    ]


def foreground(cell: Cell, network: str, steps: int, profile: str = "paper") -> dict:
    """Milliseconds of `steps` steps of a shipped teacher's cell, and the median of the `floor_ms`."""
    wm, file = load_world_model(str(cell), task=cell.task), network_file(profile, cell, network)
    corrector = load_network(file, teacher_key(str(cell))).to(wm.device)
    env, floor = make_env(cell.task), matrix_floor(step_products(wm, corrector), torch.float32)
    planner, times, floors = Stopped(wm, PlannerConfig.budget(16, 1, mode=resolve_mode("auto", wm.device))), [], []
    with BackgroundController(planner, corrector) as controller:
        obs = torch.from_numpy(start(controller, [env], episode_seeds("latency", 1)))
        end = time.monotonic() + PATIENT
        while not (came := bool(controller.act(obs)[1]["late"] >= 0)) and time.monotonic() < end:
            time.sleep(1e-3)
        planner.stopped = True
        if not came:
            raise RuntimeError(f"no plan of 16 × 1 came within {PATIENT:g} s; run it where less else runs.")
        gc.collect()
        gc.disable()
        try:
            for _ in tqdm(range(steps), desc=f"{cell}, steps without a plan", unit="step", mininterval=1):
                begin = time.perf_counter()
                action, _ = controller.act(obs)
                acted = time.perf_counter()
                after, _, terminated, truncated, _ = env.step(action[0].numpy())
                over = terminated or truncated
                obs = torch.from_numpy((env.reset(seed=0)[0] if over else after)[None])
                stepped = time.perf_counter()
                floor()
                floors.append(time.perf_counter() - stepped)
                times.append(acted - begin)
        finally:
            gc.enable()
            planner.go.set()
    env.close()
    found = {name: 1e3 * float(np.quantile(times, q)) for name, q in QUANTILES.items()}
    about = {"cell": str(cell), "corrector": network, "steps": steps, "threads": torch.get_num_threads()}
    return about | found | {"mean_ms": 1e3 * float(np.mean(times)), "floor_ms": 1e3 * float(np.median(floors))}
