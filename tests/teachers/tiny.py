"""What the tests of teachers share: a run of seconds, a tiny model in training, its batches, and waiting for a file."""

import dataclasses
import json
import time

import torch

from lib.config import WorldModelConfig
from lib.teachers.config import TeacherConfig
from lib.teachers.replay import Batch
from lib.world_model import WorldModel

SIZE = dict(enc_dim=16, mlp_dim=16, latent_dim=16, num_enc_layers=2, num_q=3)  # updates take milliseconds
SETTINGS = dict(task="cartpole-swingup", decisions=60, episode_decisions=10, seed_decisions=20, batch_size=4)
SETTINGS |= dict(collect_samples=8, collect_iterations=1, eval_every=20, eval_samples=8, eval_iterations=1)
SETTINGS |= dict(eval_episodes=2, card_episodes=2, save_every=10, snapshots=(30,), compile=False)
CONFIG = TeacherConfig(**SETTINGS)
TINY = dataclasses.replace(CONFIG, size="tiny")
OPTIONS = [f"--{k.replace('_', '-')}={v}" for k, v in SETTINGS.items() if k not in ("snapshots", "compile")]
OPTIONS += ["--no-compile", "--snapshots", "30", "--device", "cpu"]
H, B, OBS, A = 3, 8, 5, 2


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def card_of(file):
    return json.loads(file.with_suffix(".json").read_text())


def training_model(seed=0, dropout=0.0, spread=1.0, episodic=False):
    """Random in every layer; spread: a factor of the Q values, 4 if the running scale is to leave its floor."""
    torch.manual_seed(seed)
    wm = WorldModel(
        WorldModelConfig(OBS, A, 16, 24, 16, 2, num_q=4, q_dropout=dropout, discount=0.9, episodic=episodic)
    )
    with torch.no_grad():
        for p in wm.parameters():
            p.add_(0.2 * torch.randn_like(p))
        wm.q_heads.layers[-1].weight.mul_(spread)
    return wm


def random_batch(seed=1, episodic=False):
    g = torch.Generator().manual_seed(seed)
    obs, actions = torch.randn(H + 1, B, OBS, generator=g), 2 * torch.rand(H, B, A, generator=g) - 1
    rewards = 3 * torch.rand(H, B, generator=g)
    if not episodic:
        return Batch(obs, actions, rewards)
    terminated = (torch.rand(H, B, generator=g) < 0.4).float()
    played = 1 - (terminated.cumsum(0) - terminated).clamp(max=1)  # up to the first end
    return Batch(obs, actions, rewards, terminated * played, played)


def wait_for(file, process):
    """Until a process has written a file, has ended, or two minutes are over."""
    deadline = time.monotonic() + 120
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
