"""Labels: every column against a slow twin, who acts, what is kept, and what is refused."""

import numpy as np
import pytest
import torch

from lib.distil import labels as collection
from lib.distil.labels import LabelledStates, collect_labels
from lib.distil.states import DistillationError
from lib.drafts import Draft
from lib.planner import MPPI, PlannerConfig, shift
from tests.tiny import ACTIONS, BUDGET, LATENT, fresh_env, streams, tiny_model

SEEDS = [11, 12, 13]
LARGE = PlannerConfig.budget(24, 2, mode="eager")


def random_draft():
    torch.manual_seed(0)
    made = Draft(LATENT, ACTIONS, width=16)
    torch.nn.init.normal_(made.head.weight, std=0.5)
    return made.eval().requires_grad_(False)


def gather(env=None, decisions=9, wm=None, seeds=SEEDS, labels=0, **options):
    """So many labels, else as many as whole episodes with these seeds have."""
    wm, env, options = wm or tiny_model(num_q=4), env or fresh_env(), {"decisions": decisions} | options
    labels = labels or decisions * len(seeds)
    return collect_labels(MPPI(wm, BUDGET), MPPI(wm, LARGE), env, seeds, labels, **options)


def slow_rows(env, wm, decisions, draft, beta):
    """The same, one episode at a time; second labels have one coin. (decision, seed) -> a row's columns."""
    coin, again, teach = np.random.default_rng(SEEDS[0]), {}, {}
    coins = [np.random.default_rng([seed, 1]) for seed in SEEDS]
    for t in range(decisions):
        again[t], teach[t] = coin.random() < collection.AGAIN_SHARE, [one.random() < beta for one in coins]
    rows = {}
    for i, seed in enumerate(SEEDS):
        labeller, standard, stream, world = MPPI(wm, BUDGET), MPPI(wm, LARGE), streams(seed), env("tiny")
        for planner in (labeller, standard):
            planner.reset_streams(SEEDS[0])
        obs, mean = world.reset(seed=seed)[0], torch.zeros(1, 3, ACTIONS)
        for t in range(decisions):
            z = wm.encode(torch.from_numpy(obs)[None])
            a_policy = wm.policy(z)[0]
            plan = labeller(z, mean, stream)
            row = {"z": z, "a_policy": a_policy, "a_label": plan.actions[:, 0], "a_again": None, "a_standard": None}
            if again[t]:
                row["a_again"] = labeller(z, mean, stream).actions[:, 0]
                row["a_standard"] = standard(z, mean, stream).actions[:, 0]
            rows[t, seed] = row
            action = row["a_label"] if teach[t][i] or draft is None else draft(z, a_policy)[0]
            obs, mean = world.step(action[0].numpy())[0], shift(plan.mean, 1)
    return [rows[key] for key in sorted(rows)]


@pytest.mark.parametrize(("beta", "drafted"), [(1.0, False), (0.4, True), (0.0, True)])
def test_every_column_is_what_a_slow_twin_finds(monkeypatch, beta, drafted):
    monkeypatch.setattr(collection, "AGAIN_SHARE", 0.4)
    env, wm, draft = fresh_env(), tiny_model(num_q=4), random_draft() if drafted else None
    states = gather(env, wm=wm, draft=draft, beta=beta, number=2)
    with torch.no_grad():
        rows = slow_rows(env, wm, 9, draft, beta)
    assert len(states) == len(rows) == 9 * len(SEEDS)
    twice = [i for i, row in enumerate(rows) if row["a_again"] is not None]
    assert states.again_index.tolist() == twice and 0 < len(twice) < len(rows)
    for name in ("z", "a_policy", "a_label", "a_again", "a_standard"):
        expected = torch.cat([row[name] for row in rows if row[name] is not None])
        tolerance = 2e-3 if name == "z" else 1e-3
        torch.testing.assert_close(states.columns()[name].float(), expected, rtol=0, atol=tolerance)
    assert states.round.unique().tolist() == [2] and states.decision.tolist() == sorted(list(range(9)) * 3)


def test_episodes_that_end_early_leave_the_others_as_they_are():
    env = fresh_env()
    whole = gather(env, draft=random_draft(), beta=0.5)
    env.ends[12] = 4
    states = gather(env, labels=20, draft=random_draft(), beta=0.5)
    assert (states.episode == 12).sum() == 4 and (states.episode == 13).sum() == 9
    for seed in (11, 13):
        mine, before = states.a_label[states.episode == seed], whole.a_label[whole.episode == seed]
        torch.testing.assert_close(mine, before, rtol=0, atol=1e-3)


def test_there_are_as_many_labels_as_asked_for_however_early_episodes_end():
    env, seeds = fresh_env(), list(range(11, 30))
    assert gather(seeds=seeds, labels=28).episode.unique().tolist() == [11, 12, 13, 14]
    assert gather(seeds=seeds, labels=3).episode.unique().tolist() == [11, 12]  # one to hold out
    env.ends |= dict.fromkeys([11, 13, 14], 2)
    states = gather(env, seeds=seeds, labels=28)
    assert states.episode.unique().tolist() == [11, 12, 13, 14, 15, 16] and len(states) == 3 * 2 + 3 * 9
    assert torch.equal(states.again_index, states.again_index.unique()) and len(states.a_again) < len(states)
    with pytest.raises(DistillationError, match="5 episodes have 4 labels too few; their ends come too early"):
        gather(env, seeds=seeds[:5], labels=28)


def test_the_disagreement_is_that_of_the_rows_labelled_again(monkeypatch):
    monkeypatch.setattr(collection, "AGAIN_SHARE", 0.5)
    states = gather()
    columns = states.again_index, states.a_again, states.a_standard
    pairs = [(states.a_label[i], again, standard) for i, again, standard in zip(*columns, strict=True)]
    floor = sum(float((label - again).square().mean()) for label, again, _ in pairs) / len(pairs) / 2
    other = sum(float((label - standard).square().mean()) for label, _, standard in pairs) / len(pairs)
    assert states.disagreement() == pytest.approx({"floor": floor, "to_standard": other})
    kept = states.rows(states.episode == 12)
    assert torch.equal(kept.a_label[kept.again_index], states.a_label[states.again_index][
        states.episode[states.again_index] == 12])  # fmt: skip


def test_files_are_read_as_they_were_written_one_after_the_other(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    parts = [gather(decisions=6), gather(decisions=5)]
    parts[1].episode += 100
    assert 0 < parts[0].about["label_minutes"] < 1
    for part, file in zip(parts, files, strict=True):
        part.about = {"teacher_key": "abc"}
        part.save(file)
    both = LabelledStates.load(*files)
    assert len(both) == 33 and both.about == {"teacher_key": "abc"}
    torch.testing.assert_close(both.a_label, torch.cat([p.a_label for p in parts]))
    assert both.again_index.tolist() == [*parts[0].again_index.tolist(), *(parts[1].again_index + 18).tolist()]
    with pytest.raises(DistillationError, match="holds an episode that the files before it hold too"):
        LabelledStates.load(files[0], files[0])
    parts[1].about = {"teacher_key": "other"}
    parts[1].save(files[1])
    with pytest.raises(DistillationError, match="labelled by another teacher"):
        LabelledStates.load(*files)


@pytest.mark.parametrize("harm", [lambda f: f.write_bytes(b"no"), lambda f: f.write_bytes(f.read_bytes()[:-9])])
def test_a_damaged_file_is_refused(tmp_path, harm):
    file = tmp_path / "a.safetensors"
    gather(decisions=4).save(file)
    harm(file)
    with pytest.raises(DistillationError, match="holds no labelled states"):
        LabelledStates.load(file)


def test_values_that_are_not_finite_are_refused(tmp_path):
    states = gather(decisions=4)
    states.a_label[0, 0] = torch.nan
    states.save(tmp_path / "a.safetensors")
    with pytest.raises(DistillationError, match="damaged, or of another format"):
        LabelledStates.load(tmp_path / "a.safetensors")


def test_planners_that_do_not_fit_are_refused():
    wm = tiny_model()
    with pytest.raises(DistillationError, match="the teacher's world model and the same horizon"):
        collect_labels(MPPI(wm, BUDGET), MPPI(tiny_model(), LARGE), fresh_env(), SEEDS, 9)
    sampling = PlannerConfig.budget(16, 2, mode="eager", action_selection="sample")
    with pytest.raises(DistillationError, match="weighted mean"):
        collect_labels(MPPI(wm, sampling), MPPI(wm, LARGE), fresh_env(), SEEDS, 9)
