"""Training in several processes: two gloo ranks against one process, resuming on other numbers, a rank that dies."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from lib.config import MODEL_SIZES, ConfigError
from lib.environments import make_env, task_names
from lib.records.paths import ROOT
from lib.teachers import cli as teacher
from lib.teachers import training
from lib.teachers.cli import TrainingRun
from lib.teachers.config import TeacherConfig
from lib.teachers.distributed import ALONE, DistributedError, Ranks, resolve_device, started
from lib.teachers.learner import Learner
from lib.teachers.replay import Batch, load_episodes
from tests.teachers.tiny import SETTINGS, SIZE, A, B, H, random_batch, training_model, wait_for
from tests.tiny import Diverging, Shorter

CHANGES = dict(size="tiny", decisions=80, eval_episodes=3, save_every=20, snapshots=())
CONFIG = TeacherConfig(**SETTINGS | CHANGES)
HEADS = [torch.tensor([3, 1]), torch.tensor([0, 2])]  # of the values and of the policy

# A server that has imported everything and forks: a rank starts in a tenth of a second, and inherits no threads.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["lib.teachers.cli", "torch._dynamo", "dm_control.suite"])


def _enter(function, rank, world, store, results, arguments):
    torch.set_num_threads(1)
    MODEL_SIZES["tiny"] = SIZE
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

    def _noise(self, like):
        return self.noises.pop(0)

    def draw_heads(self):
        return self.heads.pop(0)


def data(seed):
    """A micro-batch and the noise of its two losses."""
    g = torch.Generator().manual_seed(100 + seed)
    return random_batch(seed), torch.randn(H, B, A, generator=g), torch.randn(H + 1, B, A, generator=g)


def outcome(batches, noises, heads, ranks=ALONE):
    """Gradients, weights, scale and losses of one step on micro-batches."""
    config = TeacherConfig(compile=False, batch_size=batches[0].obs.shape[1], grad_clip=1e9, tau=0.5)
    learner = Fixed(training_model(spread=4), config, ranks)
    learner.noises, learner.heads = noises, heads
    losses = learner.update(*batches)
    gradients = {n: p.grad.clone() for n, p in learner.wm.named_parameters() if p.grad is not None}
    return gradients, learner.wm.state_dict(), learner.scale.value, losses


def update(ranks, parts):
    """The outcome of micro-batches of the given seeds, with the same heads everywhere."""
    batches, noises, policy_noises = zip(*(data(seed) for seed in parts), strict=True)
    heads = [pair for pair in HEADS for _ in parts]
    return outcome(batches, [*noises, *policy_noises], heads, ranks)


def in_one(count):
    """The same for the micro-batches of the seeds below `count`, put together into one batch of one process."""
    batches, *noises = zip(*(data(seed) for seed in range(count)), strict=True)
    parts = zip(*((batch.obs, batch.actions, batch.rewards) for batch in batches), strict=True)
    return outcome([Batch(*(torch.cat(part, 1) for part in parts))], [torch.cat(n, 1) for n in noises], [*HEADS])


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
    learner = Learner(
        training_model(dropout=dropout, spread=4), TeacherConfig(compile=False, batch_size=B, tau=0.5), ranks
    )
    torch.manual_seed(ranks.rank)
    first = {n: p.clone() for n, p in learner.wm.state_dict().items()}
    for step in range(4):
        learner.update(*(random_batch(100 * ranks.rank + 10 * step + i) for i in range(count)))
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
    weights = training_model().state_dict()
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
    with pytest.raises(ConfigError, match="'cuda:2' is not there: this machine has 2 GPUs"):
        resolve_device("cuda:2")
    with pytest.raises(ConfigError, match="'gpu' is not known; use auto, cpu or cuda"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="'cuda' needs a GPU, and torch sees none"):
        resolve_device("cuda")


# ------------------------------------------------------------------------------------------------------------ training


def _train(ranks, config, folder):
    run = TrainingRun(config, folder, ranks)
    before = (run.decisions, run.episodes, run.updates, len(run.buffer))
    run.train()
    starts = [tuple(e.obs[0]) for e in run.buffer.episodes()]
    after, curve = (run.decisions, run.episodes, run.updates), [{**row, "minutes": 0} for row in run.curve]
    return SimpleNamespace(before=before, after=after, weights=run.learner.wm.state_dict(), curve=curve, starts=starts)


def test_two_ranks_train_resume_and_hand_over_to_one_and_back(tmp_path):
    half, folder = dataclasses.replace(CONFIG, decisions=40), tmp_path / "run"
    first, second = on_ranks(tmp_path, _train, CONFIG, tmp_path / "whole")
    # 20 decisions make the seed phase, of half as many steps; after it, a step for every two decisions of both ranks
    assert first.after == (80, 8, 10 + 30) and [row["decision"] for row in first.curve] == [20, 40, 60, 80]
    assert same(first.weights, second.weights) and first.curve == second.curve and first.curve[0]["episodes"] == 3
    assert len(first.starts) == len(second.starts) == 4 and len({*first.starts, *second.starts}) == 8

    on_ranks(tmp_path, _train, half, folder)
    saved = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert len(load_episodes(folder / "train_buffer.safetensors")) == 4
    resumed = on_ranks(tmp_path, _train, CONFIG, folder)
    assert resumed[0].before == (40, 4, 20, 20) and same(resumed[0].weights, first.weights)
    assert resumed[1].starts == second.starts

    for name, content in saved.items():
        (folder / name).write_bytes(content)
    run = TrainingRun(dataclasses.replace(CONFIG, decisions=60), folder)  # the same in one process
    assert (run.decisions, len(run.buffer), len(run.buffer.episodes())) == (40, 40, 4)
    run.train()
    assert (run.decisions, run.updates) == (60, 20 + 20)  # now a step for every decision
    first, second = on_ranks(tmp_path, _train, CONFIG, folder)
    assert first.before == second.before == (60, 6, 40, 30)
    assert same(first.weights, second.weights) and first.after == (80, 8, 50)
    assert len({*first.starts, *second.starts}) == 8  # no episode was lost, or played twice


def _train_with_short_episodes(ranks, config, folder):
    training.make_env = lambda task, seed: Shorter(make_env(task, seed))  # of a rank's own process
    return _train(ranks, config, folder)


def test_more_ranks_than_episodes_and_episodes_of_all_lengths(tmp_path):
    """Three ranks go on with two episodes; a rank has no evaluation, and another's episodes end early."""
    config, folder = dataclasses.replace(CONFIG, eval_episodes=2), tmp_path / "run"

    def on_three(decisions):
        one_more = dataclasses.replace(config, decisions=decisions)
        return on_ranks(tmp_path, _train_with_short_episodes, one_more, folder, world=3)

    run = TrainingRun(dataclasses.replace(config, decisions=20), folder)
    run.train()
    assert (run.episodes, run.updates) == (2, 20)
    found = on_three(40)  # no rank draws in this round, all do when it is over
    assert [each.before for each in found] == [(20, 2, 20, 10), (20, 2, 20, 10), (20, 2, 20, 0)]
    assert [each.after for each in found] == 3 * [(44, 5, 20 + 8)]
    found = on_three(60)
    assert all(same(each.weights, found[0].weights) for each in found)
    assert [each.after for each in found] == 3 * [(68, 8, 20 + 16)]
    assert len({start for each in found for start in each.starts}) == 8


def _train_diverging(ranks, config, folder):
    training.make_env = lambda task, seed: Diverging(make_env(task, seed))
    run = TrainingRun(config, folder, ranks)
    run.train()
    return run.decisions, run.episodes, run.diverged, [len(e) for e in run.buffer.episodes()]


def test_ranks_count_together_where_simulators_diverge(tmp_path):
    found = on_ranks(tmp_path, _train_diverging, dataclasses.replace(CONFIG, decisions=48), tmp_path / "run")
    assert found == [(48, 6, 2, [3, 10, 10]), (48, 6, 2, [10, 3, 10])]


def _offline(ranks, file, folder):
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
import os, pathlib
from lib.config import MODEL_SIZES
from lib.teachers.cli import TeacherConfig, TrainingRun
from lib.teachers.distributed import started
MODEL_SIZES["tiny"], folder = size, pathlib.Path(folder)
folder.mkdir(parents=True, exist_ok=True)
(folder / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
with started("cpu", timeout=0.5) as ranks:
    TrainingRun(TeacherConfig(**settings), folder, ranks).train()
"""


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_it_can_be_resumed(tmp_path):
    settings, folder = dataclasses.replace(CONFIG, decisions=100_000, eval_every=10**6), tmp_path / "run"
    given = f"settings, size, folder = {dataclasses.asdict(settings)}, {SIZE}, {str(folder)!r}"
    (tmp_path / "job.py").write_text(given + JOB)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = subprocess.Popen([*command, str(tmp_path / "job.py")], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(folder / "state.pt", job)
    assert job.poll() is None, job.stderr.read()
    killed = time.monotonic()
    os.kill(int((folder / "pid-1").read_text()), signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1 and time.monotonic() - killed < 30
    assert "Signal 9 (SIGKILL) received" in errors and "rank      : 1" in errors
    done = TrainingRun(dataclasses.replace(settings, decisions=80), folder).decisions
    assert done >= 20
    first, second = on_ranks(tmp_path, _train, dataclasses.replace(settings, decisions=done + 20), folder)
    assert first.before[0] == done and first.after[0] == done + 20 and same(first.weights, second.weights)
