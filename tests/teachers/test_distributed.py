"""Training in several processes: two gloo ranks against one process, resuming on other numbers, a rank that dies."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from lib.config import MODEL_SIZES, ConfigError, WorldModelConfig
from lib.environments import make_env, task_names
from lib.records.paths import ROOT
from lib.teachers import cli as teacher
from lib.teachers import training
from lib.teachers.cli import TrainingRun
from lib.teachers.config import TeacherConfig
from lib.teachers.distributed import ALONE, DistributedError, Ranks, resolve_device, started
from lib.teachers.learner import Learner
from lib.teachers.replay import Batch, load_episodes
from lib.world_model import WorldModel
from tests.tiny import Shorter

H, B, OBS, A, Q = 3, 6, 5, 2, 4
TINY = dict(enc_dim=16, mlp_dim=16, latent_dim=16, num_enc_layers=2, num_q=3)
CONFIG = TeacherConfig(
    task="cartpole-swingup",
    size="tiny",
    decisions=80,
    episode_decisions=10,
    seed_decisions=20,
    batch_size=4,
    eval_every=20,
    eval_episodes=3,
    eval_samples=8,
    eval_iterations=1,
    collect_samples=8,
    collect_iterations=1,
    save_every=20,
    snapshots=(),
    compile=False,
)

# A server that has imported everything and forks: a rank starts in a tenth of a second, and inherits no threads.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["lib.teachers.cli", "torch._dynamo", "dm_control.suite"])


def _enter(function, rank, world, store, results, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    result = function(Ranks(rank, world), *arguments)
    torch.save(result, f"{results}-{rank}.pt")  # by file: a tensor in a queue needs its sender alive
    dist.destroy_process_group()


def on_ranks(tmp_path, function, *arguments, world=2):
    """What `function(ranks, *arguments)` returns in each of `world` processes."""
    task_names()  # sets what dm_control needs to be imported by the server
    name = tmp_path / f"job-{time.monotonic_ns()}"
    common = (world, f"{name}-store", name, arguments)
    processes = [SERVER.Process(target=_enter, args=(function, r, *common)) for r in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    for process in processes:
        process.kill()
    assert [p.exitcode for p in processes] == [0] * world
    return [torch.load(f"{name}-{r}.pt", weights_only=False) for r in range(world)]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


# -------------------------------------------------------------------------------------------------------------- update


class Fixed(Learner):
    """Noise and heads that depend only on the order of the draws, or are those of given micro-batches together."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.noises, self.heads = [], []

    def _noise(self, like):
        return self.noises.pop(0)

    def draw_heads(self):
        return self.heads.pop(0)


def model(dropout=0.0):
    torch.manual_seed(0)
    wm = WorldModel(WorldModelConfig(OBS, A, 16, 24, 16, 2, num_q=Q, q_dropout=dropout))
    with torch.no_grad():
        for p in wm.parameters():
            p.add_(0.2 * torch.randn_like(p))
        wm.q_heads.layers[-1].weight.mul_(4)  # so that the running scale leaves its floor
    return wm


def data(seed):
    """A micro-batch and the noise of its two losses."""
    g = torch.Generator().manual_seed(seed)
    batch = Batch(
        torch.randn(H + 1, B, OBS, generator=g),
        2 * torch.rand(H, B, A, generator=g) - 1,
        3 * torch.rand(H, B, generator=g),
    )
    return batch, torch.randn(H, B, A, generator=g), torch.randn(H + 1, B, A, generator=g)


def update(ranks, parts):
    """One step on micro-batches of the given seeds, with the same heads everywhere; gradients, weights and scale."""
    learner = Fixed(model(), TeacherConfig(compile=False, batch_size=B, grad_clip=1e9, tau=0.5), ranks)
    batches, noises, policy_noises = zip(*(data(seed) for seed in parts), strict=True)
    learner.noises = [*noises, *policy_noises]
    learner.heads = [torch.tensor([3, 1])] * len(parts) + [torch.tensor([0, 2])] * len(parts)
    return outcome(learner, batches)


def outcome(learner, batches):
    losses = learner.update(*batches)
    gradients = {n: p.grad.clone() for n, p in learner.wm.named_parameters() if p.grad is not None}
    return gradients, learner.wm.state_dict(), learner.scale.value, losses


def in_one(count):
    """The same for the micro-batches of the seeds below `count`, put together into one batch of one process."""
    pieces = [data(seed) for seed in range(count)]
    learner = Fixed(model(), TeacherConfig(compile=False, batch_size=count * B, grad_clip=1e9, tau=0.5))
    learner.noises = [torch.cat([p[i] for p in pieces], 1) for i in (1, 2)]
    learner.heads = [torch.tensor([3, 1]), torch.tensor([0, 2])]
    return outcome(
        learner, [Batch(*(torch.cat([getattr(p[0], k) for p in pieces], 1) for k in ("obs", "actions", "rewards")))]
    )


def assert_equal_gradients(found, wanted):
    (gradients, _, scale, _), (expected, _, expected_scale, _) = found, wanted
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scale, expected_scale)


def _update_of_rank(ranks, count):
    return update(ranks, range(ranks.rank * count, (ranks.rank + 1) * count))


@pytest.mark.parametrize("count", [1, 2])
def test_the_gradient_of_ranks_is_that_of_all_their_batches_in_one_process(tmp_path, count):
    first, second = on_ranks(tmp_path, _update_of_rank, count)
    whole = in_one(2 * count)
    assert whole[2] > 1.05
    assert {n.split(".")[0] for n in whole[0]} == {"encoder", "dynamics", "reward_head", "pi", "q_heads"}
    for found in (first, second):
        assert_equal_gradients(found, whole)
    assert same(first[0], second[0]) and same(first[1], second[1])
    mean = (first[3]["loss"] + second[3]["loss"]) / 2  # each rank reports its own batches
    assert mean == pytest.approx(whole[3]["loss"], rel=1e-4) and first[3]["loss"] != second[3]["loss"]


def test_micro_batches_in_one_process_are_one_batch():
    assert_equal_gradients(update(ALONE, range(3)), in_one(3))


def _steps(ranks, count, dropout):
    learner = Learner(model(dropout), TeacherConfig(compile=False, batch_size=B, tau=0.5), ranks)
    torch.manual_seed(ranks.rank)
    first = {n: p.clone() for n, p in learner.wm.state_dict().items()}
    for step in range(4):
        learner.update(*(data(100 * ranks.rank + 10 * step + i)[0] for i in range(count)))
    weights = learner.wm.state_dict()
    ranks.check_equal(weights)
    moved = {n.split(".")[0] for n in weights if not torch.equal(weights[n], first[n])}
    return weights, learner.state_dict(), moved, torch.rand(1)


@pytest.mark.parametrize("count", [1, 3])
def test_parameters_stay_equal_to_the_bit(tmp_path, count):
    (weights, state, moved, draw), (others, other_state, _, other_draw) = on_ranks(tmp_path, _steps, count, 0.1)
    assert same(weights, others) and torch.equal(state["scale"], other_state["scale"]) and state["scale"] > 1.05
    assert moved == {"encoder", "dynamics", "reward_head", "pi", "q_heads", "target_q_heads"}
    assert not torch.equal(draw, other_draw)


def _differ(ranks):
    weights = model().state_dict()
    if ranks.rank == 1:
        weights["pi.0.bias"][3] += 1e-6
    swapped = {"x": torch.tensor([1.0, 2.0]) if ranks.rank else torch.tensor([2.0, 1.0])}
    messages = []
    for tensors in (weights, swapped):
        try:
            ranks.check_equal(tensors)
        except DistributedError as error:
            messages.append(str(error))
    return messages


def test_unequal_parameters_are_named(tmp_path):
    for messages in on_ranks(tmp_path, _differ):
        assert len(messages) == 2 and messages[0].startswith("pi.0.bias differs between rank 0 and rank 1: gradients")


def _talk(ranks):
    shares = ranks.share(range(5))
    total, exchanged = ranks.total(len(shares)), ranks.exchanged(ranks.rank)
    x = ranks.concatenated(torch.full((2,), float(ranks.rank)))
    return shares, total, exchanged, ranks.gathered(ranks.rank), ranks.from_main(lambda: f"of {ranks.rank}"), x


def test_what_ranks_tell_each_other(tmp_path):
    first, second = on_ranks(tmp_path, _talk)
    assert first[:5] == ([0, 2, 4], 5, [0, 1], [0, 1], "of 0") and second[:5] == ([1, 3], 5, [0, 1], [], "of 0")
    assert first[5].tolist() == second[5].tolist() == [0, 0, 1, 1]
    alone = _talk(ALONE)
    assert alone[:5] == ([0, 1, 2, 3, 4], 5, [0], [0], "of 0")
    with started("cpu") as ranks:
        assert ranks == ALONE


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="has 2 GPUs.*give --nproc-per-node 2, or --device cpu"):
        resolve_device("cuda")
    with pytest.raises(ConfigError, match="'cuda:0' would be every process's under torchrun"):
        resolve_device("cuda:0")


def test_one_process_takes_its_gpu_by_number(monkeypatch):
    taken = []
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_set_device", taken.append, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", taken.append, raising=False)
    for device, number in (("auto", 0), ("cuda", 0), ("cuda:1", 1)):
        with started(device) as ranks:  # torch takes no device without a number
            assert ranks.device == torch.device("cuda", number) and ranks.world == 1
    assert taken == [0, 0, 1]
    for device, message in (
        ("cuda:2", "'cuda:2' is not there: this machine has 2 GPUs"),
        ("gpu", "'gpu' is not known; use auto, cpu or cuda"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve_device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="'cuda' needs a GPU, and torch sees none"):
        resolve_device("cuda")


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch):
    monkeypatch.setitem(MODEL_SIZES, "tiny", TINY)


def _train(ranks, config, folder):
    MODEL_SIZES["tiny"] = TINY  # in a process that has no fixture
    run = TrainingRun(config, folder, ranks)
    before = (run.decisions, run.episodes, run.updates, len(run.buffer))
    run.train()
    mine = [tuple(e.obs[0]) for e in run.buffer.episodes()]
    return before, run.learner.wm.state_dict(), run.curve, mine, (run.decisions, run.episodes, run.updates)


def returns(curve):
    return [(row["decision"], row["episodes"], row["return"]) for row in curve]


def test_two_ranks_train_resume_and_hand_over_to_one_and_back(tmp_path):
    half, folder = dataclasses.replace(CONFIG, decisions=40), tmp_path / "run"
    whole = on_ranks(tmp_path, _train, CONFIG, tmp_path / "whole")
    (_, weights, curve, starts, counters), (_, others, other_curve, other_starts, _) = whole
    # 20 decisions make the seed phase, of half as many steps; after it, a step for every two decisions of both ranks
    assert counters == (80, 8, 10 + 30) and [row["decision"] for row in curve] == [20, 40, 60, 80]
    assert same(weights, others) and returns(curve) == returns(other_curve) and curve[0]["episodes"] == 3
    assert len(starts) == len(other_starts) == 4 and len({*starts, *other_starts}) == 8

    on_ranks(tmp_path, _train, half, folder)
    saved = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert len(load_episodes(folder / "train_buffer.safetensors")) == 4
    resumed = on_ranks(tmp_path, _train, CONFIG, folder)
    assert resumed[0][0] == (40, 4, 20, 20) and same(resumed[0][1], weights) and resumed[1][3] == other_starts

    for name, content in saved.items():
        (folder / name).write_bytes(content)
    run = TrainingRun(dataclasses.replace(CONFIG, decisions=60), folder)  # the same in one process
    assert (run.decisions, len(run.buffer), len(run.buffer.episodes())) == (40, 40, 4)
    run.train()
    assert (run.decisions, run.updates) == (60, 20 + 20)  # now a step for every decision
    back = on_ranks(tmp_path, _train, CONFIG, folder)
    assert [found[0] for found in back] == [(60, 6, 40, 30), (60, 6, 40, 30)]
    assert same(back[0][1], back[1][1]) and back[0][4] == (80, 8, 50)
    assert len({*back[0][3], *back[1][3]}) == 8  # no episode was lost, or played twice


def _train_with_short_episodes(ranks, config, folder):
    training.make_env = lambda task, seed: Shorter(make_env(task, seed))  # of a rank's own process
    return _train(ranks, config, folder)


def test_more_ranks_than_episodes_and_episodes_of_all_lengths(tmp_path):
    """Three ranks go on with two episodes; a rank has no evaluation, and another's episodes end early."""
    config = dataclasses.replace(CONFIG, decisions=20, eval_episodes=2)
    run = TrainingRun(config, tmp_path / "run")
    run.train()
    assert (run.episodes, run.updates) == (2, 20)
    one_round = dataclasses.replace(config, decisions=40)  # no rank draws in it, all do when it is over
    found = on_ranks(tmp_path, _train_with_short_episodes, one_round, tmp_path / "run", world=3)
    assert [before for before, *_ in found] == [(20, 2, 20, 10), (20, 2, 20, 10), (20, 2, 20, 0)]
    assert [counters for *_, counters in found] == 3 * [(44, 5, 20 + 8)]
    found = on_ranks(
        tmp_path, _train_with_short_episodes, dataclasses.replace(config, decisions=60), tmp_path / "run", world=3
    )
    assert all(same(weights, found[0][1]) for _, weights, *_ in found)
    assert [counters for *_, counters in found] == 3 * [(68, 8, 20 + 16)]
    assert len({start for _, _, _, starts, _ in found for start in starts}) == 8


def _offline(ranks, file, folder):
    MODEL_SIZES["tiny"] = TINY
    try:
        TrainingRun(CONFIG, folder, ranks).train_offline([file], 8)
    except ConfigError as error:
        return str(error)


def test_a_replay_of_fewer_episodes_than_ranks_is_refused(tmp_path):
    run, folder = TrainingRun(dataclasses.replace(CONFIG, decisions=10), tmp_path / "run"), tmp_path / "offline"
    run.train()
    file = tmp_path / "run" / "train_buffer.safetensors"
    for _ in range(2):  # at the start, and when one process has begun it
        messages = on_ranks(tmp_path, _offline, file, folder)
        assert all("1 episodes are too few, or too short, for 2 processes" in message for message in messages)
        TrainingRun(CONFIG, folder).train_offline([file], 4)


def test_a_rank_that_lost_another_says_how_to_go_on(monkeypatch, capsys):
    @contextlib.contextmanager
    def two_ranks(*_):
        yield Ranks(1, 2)

    def lose(*_, **__):
        raise RuntimeError("Connection closed by peer [127.0.0.1]\nmore")

    monkeypatch.setattr(teacher, "started", two_ranks)
    monkeypatch.setattr(teacher, "TrainingRun", lose)
    assert teacher.main(["train", "--task", "cartpole-swingup"]) == 1
    errors = capsys.readouterr().err
    assert "rank 1 of 2 stopped: Connection closed by peer [127.0.0.1]" in errors and "goes on from the last" in errors
    monkeypatch.setattr(teacher, "started", lambda *_: contextlib.nullcontext(ALONE))
    with pytest.raises(RuntimeError, match="Connection closed"):
        teacher.main(["train", "--task", "cartpole-swingup"])


JOB = """
import json, os, pathlib, sys
from lib.config import MODEL_SIZES
from lib.teachers.config import TeacherConfig
from lib.teachers.distributed import started
from lib.teachers.cli import TrainingRun
settings, tiny, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), pathlib.Path(sys.argv[3])
MODEL_SIZES["tiny"] = tiny
settings["snapshots"] = ()
folder.mkdir(parents=True, exist_ok=True)
(folder / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
with started("cpu", timeout=0.5) as ranks:
    TrainingRun(TeacherConfig(**settings), folder, ranks).train()
"""


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_it_can_be_resumed(tmp_path):
    settings = dataclasses.asdict(dataclasses.replace(CONFIG, decisions=100_000, eval_every=10**6))
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "job.py"), json.dumps(settings), json.dumps(TINY), str(tmp_path / "run")]
    job = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "state.pt").exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job.poll() is None, job.stderr.read()
    killed = time.monotonic()
    os.kill(int((tmp_path / "run" / "pid-1").read_text()), signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1 and time.monotonic() - killed < 30
    assert "Signal 9 (SIGKILL) received" in errors and "rank      : 1" in errors
    done = TrainingRun(dataclasses.replace(CONFIG, eval_every=10**6), tmp_path / "run").decisions
    assert done >= 20
    config = dataclasses.replace(CONFIG, eval_every=10**6, decisions=done + 20)
    first, second = on_ranks(tmp_path, _train, config, tmp_path / "run")
    assert first[0][0] == done and first[4][0] == done + 20 and same(first[1], second[1])
