"""Drafts of a cell: labels that are collected once, in rounds; rivals; what is made anew and what is not."""

import dataclasses
import functools

import pytest
import torch

from lib.config import ConfigError
from lib.distil.labels import LabelledStates
from lib.drafts import Draft, PriorDraft
from lib.policy import PolicyController
from lib.records import paths
from lib.study import drafting
from lib.study.cells import resolve
from lib.study.drafting import (
    CURVE,
    ensure_draft,
    labelled_states,
    learning_curve,
    learnt_on,
    references,
    rounds_of,
    trained,
)
from lib.study.profiles import PROFILES, DraftStudy
from lib.weights.distilled import load_network
from lib.weights.native import save_world_model, teacher_key
from tests.tiny import fresh_env, tiny_model

STUDY = DraftStudy((24, 24), (30,), (1.0, 0.5), epochs=2, members=2)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Empty data folders with one random teacher, free environments, and a note of the collections and trainings."""
    for name in ("DATA", "CACHE", "TEACHERS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    monkeypatch.setattr(drafting, "make_env", fresh_env())
    paths.TEACHERS.mkdir()
    ship(0)
    done, collect, train = [], drafting.collect_labels, drafting.train_draft

    @functools.wraps(collect)  # keys are of the code that it stands for
    def noted_collect(labeller, standard, envs, seeds, labels, draft, beta, *rest):
        done.append((labels, draft is not None, beta))
        return collect(labeller, standard, envs, seeds, labels, draft, beta, *rest)

    @functools.wraps(train)
    def noted_train(states, training):
        done.append(len(states))
        return train(states, training, progress=False)

    monkeypatch.setattr(drafting, "collect_labels", noted_collect)
    monkeypatch.setattr(drafting, "train_draft", noted_train)
    return done


def ship(seed):
    save_world_model(tiny_model(seed=seed), paths.TEACHERS / "tiny-task-1m-1.safetensors")


def settings(**changes):
    chosen = resolve("smoke", "tiny-task", "1m", 1, "", "cpu")
    study = dataclasses.replace(STUDY, **changes)
    return dataclasses.replace(chosen, profile=dataclasses.replace(PROFILES["smoke"], drafts=study))


def test_a_draft_learns_in_rounds_and_is_made_once(home):
    chosen = settings()
    path = ensure_draft(chosen, chosen.cell, "distilled")
    assert home == [(24, False, 1.0), 24, (24, True, 0.5), 48]  # each round its labels, then the draft
    draft = load_network(path, teacher_key("tiny-task-1m-1"))
    assert isinstance(draft, Draft) and draft.members == 2
    assert ensure_draft(chosen, chosen.cell, "distilled") == path and len(home) == 4


def test_the_draft_that_is_measured_is_the_one_that_is_kept(home):
    """In half precision, so that a file is half as large and no digit is told that it does not hold."""
    chosen = settings()
    for kind in ("distilled", "prior+"):
        kept = load_network(ensure_draft(chosen, chosen.cell, kind))
        states = LabelledStates.load(*labelled_states(chosen, chosen.cell, kind))
        measured = trained(chosen, chosen.cell, kind, states).draft
        for name, weights in kept.state_dict().items():
            assert torch.equal(weights, measured.state_dict()[name]), name
            assert torch.equal(weights, weights.half().float()), name


def test_the_cloned_one_shares_the_first_round_and_visits_the_labellers_episodes_alone(home):
    chosen = settings()
    ensure_draft(chosen, chosen.cell, "distilled")
    home.clear()
    ensure_draft(chosen, chosen.cell, "cloned")
    assert home == [(24, False, 1.0), 48]
    ours, theirs = (rounds_of(chosen, chosen.cell, kind) for kind in ("distilled", "cloned"))
    assert ours[0].key == theirs[0].key and ours[1].key != theirs[1].key
    assert [r.seeds[0] for r in ours] == [301_500_000, 301_510_000]


def test_what_has_changed_is_made_anew(home):
    chosen = settings()
    path = ensure_draft(chosen, chosen.cell, "distilled")
    before = path.read_bytes()
    home.clear()
    other = settings(epochs=3)  # another draft acts in the second round
    ensure_draft(other, other.cell, "distilled")
    assert home == [24, (24, True, 0.5), 48] and path.read_bytes() != before
    home.clear()
    ship(1)
    ensure_draft(other, other.cell, "distilled")
    assert home == [(24, False, 1.0), 24, (24, True, 0.5), 48]


def test_more_labels_go_on_from_those_that_are_there(home):
    chosen = settings()
    files = labelled_states(chosen, chosen.cell, "distilled")
    home.clear()
    more = labelled_states(chosen, chosen.cell, "distilled", extended=True)
    assert more[:2] == files and home == [48, (30, True, 0.0)]
    states = LabelledStates.load(*more)
    assert states.round.unique().tolist() == [1, 2, 3] and len(states) == 24 + 24 + 36


def test_the_prior_that_learnt_on_is_worth_more_to_q_and_leaves_the_teacher_alone(home):
    wm, chosen = tiny_model(num_q=4), settings()
    path = ensure_draft(chosen, chosen.cell, "prior+")
    assert isinstance(load_network(path), PriorDraft)
    states = LabelledStates.load(*labelled_states(chosen, chosen.cell, "distilled"))
    before = {k: v.clone() for k, v in wm.state_dict().items()}
    draft = learnt_on(wm, states, updates=150, batch_size=64)
    assert all(torch.equal(v, before[k]) for k, v in wm.state_dict().items())
    z = states.z.float()
    first, later = (wm.q(z, a).mean() for a in (wm.policy(z)[0], draft(z, None)[0]))
    assert later > first + 0.05


def test_the_curve_says_of_every_round_what_it_cost_and_returned(home):
    chosen = settings()
    table = learning_curve(chosen, chosen.cell, "distilled", episodes=2)
    assert list(table[0]) == list(CURVE)
    assert [(r["round"], r["labels"], r["episode_seed"]) for r in table] == [
        (1, 24, 401_000_000), (1, 24, 401_000_001), (2, 48, 401_000_000), (2, 48, 401_000_001)]  # fmt: skip
    assert 0 < table[0]["label_minutes"] < table[2]["label_minutes"]
    others = learning_curve(chosen, chosen.cell, "distilled", episodes=1, seed=1, modes=2, last=True)
    assert [(r["round"], r["seed"], r["modes"], r["labels"]) for r in others] == [(2, 1, 2, 48)]
    assert others[0]["label_minutes"] == table[2]["label_minutes"] and others[0]["return"] != table[2]["return"]
    made = load_network(ensure_draft(chosen, chosen.cell, "distilled"))
    wm, env = tiny_model(), drafting.make_env("tiny-task")
    total, obs = 0.0, env.reset(seed=401_000_001)[0]
    for _ in range(12):
        z = wm.encode(torch.from_numpy(obs)[None])
        obs, reward, *_ = env.step(made(z, wm.policy(z)[0])[0][0].numpy())
        total += reward
    assert table[3]["return"] == pytest.approx(total, abs=1e-3)


def test_beside_the_drafts_stand_the_labeller_and_the_prior(home):
    chosen = settings()
    rows = references(chosen, chosen.cell, episodes=2)
    assert (
        all(list(row) == list(CURVE) for row in rows)
        and [r["draft"] for r in rows] == ["labeller"] * 2 + ["policy"] * 2
    )
    wm, env = tiny_model(), drafting.make_env("tiny-task")
    total, obs = 0.0, env.reset(seed=rows[3]["episode_seed"])[0]
    for _ in range(12):
        obs, reward, *_ = env.step(wm.policy(wm.encode(torch.from_numpy(obs)[None]))[0][0].numpy())
        total += reward
    assert rows[3]["return"] == pytest.approx(total, abs=1e-3) and rows[0]["return"] != rows[2]["return"]


def test_a_draft_of_other_labels_than_todays_is_made_anew(home, monkeypatch):
    chosen = settings()
    path = ensure_draft(chosen, chosen.cell, "cloned")
    home.clear()

    monkeypatch.setattr(drafting, "COLLECTED_BY", (*drafting.COLLECTED_BY, PolicyController))  # as if it labelled, too
    ensure_draft(chosen, chosen.cell, "cloned")
    assert home == [(24, False, 1.0), (24, False, 1.0), 48] and path.is_file()
    home.clear()
    path.write_bytes(path.read_bytes() + b"0")
    ensure_draft(chosen, chosen.cell, "cloned")
    assert home == [48]


def test_what_cannot_be_is_refused(home):
    chosen = settings(betas=(0.5,))
    with pytest.raises(ConfigError, match="must begin with 1"):
        ensure_draft(chosen, chosen.cell, "distilled")
    chosen = settings()
    with pytest.raises(ConfigError, match="draft='distiled' is not known"):
        ensure_draft(chosen, chosen.cell, "distiled")
