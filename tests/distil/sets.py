"""What the tests of distillation share: sets of states that nobody visited, and what a process of its own needs."""

import subprocess
import sys
import textwrap

import torch

from lib.distil.states import DistillationSet
from lib.records.paths import ROOT
from tests.tiny import ACTIONS, latents

H = 3  # plan horizon


def set_of(n, seed=0, **columns):
    """n states of random latents, plans and labels, none of them solved twice; `columns` come in place of others."""
    random, none = torch.Generator().manual_seed(seed), torch.zeros(n, dtype=torch.long)
    plan, teacher_plan = 2 * torch.rand(2, n, H, ACTIONS, generator=random) - 1
    a_plan, a_policy = 0.8 * torch.rand(2, n, ACTIONS, generator=random) - 0.4
    made = {"z_real": latents(n, seed + 1).half(), "z_pred": latents(n, seed + 2).half()}
    made |= {"a_plan": a_plan, "a_policy": a_policy, "a_teacher": teacher_plan[:, 0]}
    made |= {"plan": plan, "teacher_plan": teacher_plan, "mismatch": torch.rand(n, generator=random)}
    made |= {"depth": torch.randint(1, 3, (n,), generator=random), "decision": torch.arange(n)}
    made |= {"episode": none, "source": none, "again_index": none[:0], "a_again": torch.zeros(0, ACTIONS)}
    return DistillationSet(**made | columns)


PEAK = """
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20
"""


def printed_by(code: str) -> list[float]:
    """The numbers that `code` prints in a process of its own, in which `peak()` is the memory needed so far, in GiB."""
    run = [sys.executable, "-c", PEAK + textwrap.dedent(code)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]
