"""M1–M5 where they are known: perfect, shifted and sign-flipped models; and the study's cells, tables and figures."""

import dataclasses
import functools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lib.config import ConfigError, WorldModelConfig
from lib.records import paths
from lib.records.seeds import SEED_BLOCKS
from lib.records.store import read_sidecar
from lib.study.model_quality import bench as benches
from lib.study.model_quality import metrics, snapshots, tables
from lib.study.model_quality.bench import measure_cells
from lib.study.model_quality.metrics import RandomActions, bank, fit_decoder, model_metrics, ranking, regret, visit
from lib.study.model_quality.oracle import SCORED, State
from lib.study.model_quality.search import CEM, SHOOTING, Encoded, Learned, Search, encode, value
from lib.study.model_quality.snapshots import resolve_study, study_cells, study_seeds
from lib.study.model_quality.tables import ALL, ALL_RANKS, METRICS, TARGETS, correlations, differences, write_tables
from lib.study.profiles import PROFILES, OfflineStudy
from lib.weights.native import save_world_model
from lib.world_model import WorldModel
from tests.bare import run_notebook
from tests.figures.test_charts import load_figure, pdf_text

SEARCH = Search(samples=6, horizon=3)
figure = load_figure("offline")


@pytest.fixture(scope="module")
def episodes(oracle):
    return visit(oracle, RandomActions(oracle), [0, 1, 2], 20)


@pytest.fixture(scope="module")
def banks(episodes):
    return {"random": bank(episodes[:2], 5, k=4), "on_policy": bank(episodes[2:], 5, k=4, seed=1)}


# ------------------------------------------------------------------------------------------------------ closed form


class Exact:
    """A model that is the simulator."""

    def __init__(self, oracle, wm, change=lambda features: features):
        self.oracle, self.encoded, self.change = oracle, Encoded(wm, oracle), change

    def latents(self, states, actions):
        return self.encoded.latents(states, actions)

    def imagine(self, states, actions):
        return self.change(self.oracle.imagine(states, actions))


def test_a_perfect_model(oracle, wm, banks):
    row = model_metrics(wm, oracle, None, banks, candidates=4, search=SEARCH, model=Exact(oracle, wm))
    for bank_ in ("", "_random", "_on_policy"):
        for error in ("m1", "m1_z", "m1_latent", "m2", "m2_z", "m5", "m5_latent"):
            assert row[error + bank_] == 0, error + bank_
        # Of the same latents; encoded in batches of other sizes, they differ by rounding.
        assert row[f"m2_latent{bank_}"] < 1e-5 and row[f"value_error{bank_}"] < 1e-4
        for agreement in ("m3", "m3_latent", "m4", "m4_latent"):
            assert row[agreement + bank_] == pytest.approx(1), agreement + bank_
            assert row[f"{agreement}{bank_}_skipped"] == 0
    assert row["reward_error"] > 0  # the head is another matter


def test_a_constant_shift_is_a_large_error_that_does_not_touch_the_ranking(oracle, wm, banks):
    """The score is linear in the features (cos θ), so every sequence is over-estimated alike."""
    shift = np.array([3.0, 0.25, 0, 4, 0])
    row = model_metrics(wm, oracle, None, banks, 4, search=SEARCH, model=Exact(oracle, wm, lambda f: f + shift))
    assert row["m1"] == pytest.approx(np.linalg.norm(shift)) == row["m2"]
    assert row["m3"] == pytest.approx(1) == row["m4"] and row["m5"] == 0
    scale = banks["random"].features.reshape(-1, 5).std(0)  # whatever the other bank holds
    assert row["m1_z"] == pytest.approx(np.linalg.norm(shift / scale)) == row["m2_z"]


def test_a_flipped_sign_ranks_the_other_way_round(oracle, wm, banks):
    row = model_metrics(wm, oracle, None, banks, 4, search=Search(6, horizon=1), model=Exact(oracle, wm, lambda f: -f))
    assert row["m3"] == pytest.approx(-1) and row["m4"] == pytest.approx(-1) and row["m5"] > 1


def test_a_constant_model_ranks_nothing_and_that_is_counted(oracle, wm, banks):
    row = model_metrics(wm, oracle, None, banks, 4, search=SEARCH, model=Exact(oracle, wm, np.zeros_like))
    assert row["m3"] is None and row["m4"] is None and row["m5"] > 0
    assert (row["m3_skipped"], row["m3_random_skipped"], row["m4_skipped"], row["m5_skipped"]) == (10, 5, 8, 0)


# ------------------------------------------------------------------------------------------------------- slow twins


def test_metrics_agree_with_loops():
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=(2, 7, 6))
    predicted[3], true[5] = 1.0, 2.0  # constant on one side
    true[1, :3] = predicted[2, :4] = 0.5  # ties
    for s in range(7):
        expected = stats.kendalltau(true[s], predicted[s]).statistic
        assert ranking(true, predicted)[s] == pytest.approx(expected, nan_ok=True)
        chosen = true[s, max(range(6), key=lambda n: predicted[s, n])]
        spread = max(true[s]) - sum(true[s]) / 6
        wanted = (max(true[s]) - chosen) / spread if min(true[s]) < max(true[s]) else math.nan
        assert regret(true, predicted)[s] == pytest.approx(wanted, nan_ok=True)
        far = math.sqrt(sum(((p - t) / 2) ** 2 for p, t in zip(predicted[s], true[s], strict=True)))
        assert metrics.l2(true, predicted, 2.0)[s] == pytest.approx(far)
    # Choosing uniformly has a regret of one on average.
    assert np.mean([regret(true[:1], np.eye(6)[n][None])[0] for n in range(6)]) == pytest.approx(1)


def test_measuring_agrees_with_loops_over_one_bank(oracle, wm, banks):
    decoder = torch.nn.Linear(wm.latent_dim, 5).requires_grad_(False)
    one, scored = banks["random"], oracle.scored
    row = model_metrics(wm, oracle, decoder, {"random": one}, 3, actions_per_state=3, search=SEARCH, seed=5)
    seen = {name: [] for name in ("m1", "m1_latent", "m2", "m3", "m3_latent", "m5", "value_error", "reward_error")}

    def stepped(state, actions):
        oracle.set(state)
        rewards = [oracle.step(a).sum() for a in actions]
        return oracle.save(), rewards

    def dreamt(state, actions):
        z = encode(wm, scored, state.features[None])
        for a in actions:
            z = wm.next(z, torch.tensor(a[None], dtype=torch.float32))
        return z

    def numbers(state, actions):
        true, _ = stepped(state, actions)
        z_true, z = encode(wm, scored, true.features[None]), dreamt(state, actions)
        return true.features, decoder(z)[0].numpy(), z_true, z

    for i, state in enumerate(one.states):
        each = [numbers(state, a[None]) for a in scored.actions[:3]]
        seen["m1"].append(np.mean([np.linalg.norm(t - p) for t, p, _, _ in each]))
        seen["m1_latent"].append(np.mean([(a - b).norm().item() for _, _, a, b in each]))
        seen["m3"].append(stats.kendalltau([t[1] for t, *_ in each], [p[1] for _, p, *_ in each]).statistic)
        worth = [[value(wm, z).item() for z in zs] for zs in zip(*[e[2:] for e in each], strict=True)]
        seen["m3_latent"].append(stats.kendalltau(*worth).statistic)
        true, predicted, z_true, z = numbers(state, one.actions[i])
        seen["m2"].append(np.linalg.norm(true - predicted))
        seen["value_error"].append(abs(value(wm, z) - value(wm, z_true)).item())
        reward = wm.reward(encode(wm, scored, state.features[None]), torch.tensor(one.actions[i, :1]).float()).item()
        seen["reward_error"].append(abs(reward - stepped(state, one.actions[i, :1])[1][0]))
        np.testing.assert_array_equal(one.features[i, -1], true)  # the bank holds what happened
    for i in range(3):
        rng = np.random.default_rng([5, i])
        sequences = scored.actions[np.minimum((rng.random((6, 3)) * 5).astype(int), 4)]
        best = [[-np.inf, -np.inf] for _ in sequences]
        for n, sequence in enumerate(sequences):
            for t in range(1, 4):
                true, predicted, _, _ = numbers(one.states[i], sequence[:t])
                best[n] = [max(best[n][0], true[1]), max(best[n][1], predicted[1])]
        seen["m5"].append(regret(*(np.array(best).T[:, None]))[0])
    for name, values in seen.items():
        assert row[name] == row[f"{name}_random"] == pytest.approx(np.mean(values), rel=1e-4, abs=1e-5), name


def test_mixed_is_the_mean_over_the_states_of_both_banks(oracle, wm, banks):
    decoder = torch.nn.Linear(wm.latent_dim, 5).requires_grad_(False)
    row = model_metrics(wm, oracle, decoder, banks, 4, search=SEARCH)
    for metric in ("m1", "m2", "m1_z", "m5", "value_error"):
        mean = (row[f"{metric}_random"] + row[f"{metric}_on_policy"]) / 2
        assert row[metric] == pytest.approx(mean, rel=1e-6), metric
    alone = model_metrics(wm, oracle, decoder, {"on_policy": banks["on_policy"]}, 4, search=SEARCH)
    assert alone["m1"] == pytest.approx(row["m1_on_policy"], rel=1e-6)


# ------------------------------------------------------------------------------------------------ banks and decoder


def test_a_bank_is_seeded_and_has_what_was_executed(oracle, episodes):
    first, same, other = bank(episodes, 8, 3), bank(episodes, 8, 3), bank(episodes, 8, 3, seed=1)
    assert np.array_equal(first.actions, same.actions) and not np.array_equal(first.actions, other.actions)
    starts = {s.integration.tobytes() for s in first.states}
    assert len(starts) == 8
    for state, actions, reward in zip(first.states, first.actions, first.rewards, strict=True):
        oracle.set(state)
        assert oracle.step(actions[0]).sum() == reward
    everything = bank(episodes, 3 * 18, 3)  # 20 decisions leave 18 states with three ahead
    assert len({s.integration.tobytes() for s in everything.states}) == 54
    with pytest.raises(ConfigError, match="states=55 cannot be drawn from 3 episodes, which have 54 states with k=3"):
        bank(episodes, 55, 3)


def test_random_actions_are_each_episodes_own(oracle, episodes):
    (alone,) = visit(oracle, RandomActions(oracle), [1], 20)
    np.testing.assert_array_equal(alone.actions, episodes[1].actions)
    assert len(alone.states) == 21 and np.abs(alone.actions).max() <= 1 and alone.rewards.shape == (20,)


def test_a_decoder_finds_what_is_in_the_latent_and_says_what_it_misses(oracle, wm):
    """On states that are drawn, not simulated: held-out ones then are like those that were learnt from."""
    features = np.random.default_rng(0).normal(size=(3, 150, 5)) * [1, 1, 1, 5, 0]
    states = [[State(np.zeros(1), np.zeros((0, 6)), f) for f in episode] for episode in features]
    seen = [metrics.Visited(episode, np.zeros(1), np.zeros(1)) for episode in states]
    fitted, untrained, again = (fit_decoder(wm, oracle.scored, seen[:2], seen[2:], steps) for steps in (120, 1, 120))
    assert fitted.error < 0.75 * untrained.error
    weights = zip(fitted.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    missed = (fitted(encode(wm, oracle.scored, features[2])).double().numpy() - features[2]) / fitted.std.numpy()
    assert fitted.error.item() == pytest.approx(np.sqrt((missed**2).mean()), rel=1e-4)
    assert fitted.std[4] == 1  # what does not vary is not divided by
    assert Learned(wm, oracle.scored, fitted).imagine(seen[0].states[:2], np.zeros((2, 1, 3, 1))).shape == (2, 1, 3, 5)


# ---------------------------------------------------------------------------------------------------- the study


TINY = WorldModelConfig(24, 6, 16, 16, 16, 2, 2)


@pytest.fixture
def shipped(home):
    """A run of walker-walk with a teacher of 24 decisions and a snapshot of 50,000."""
    folder = paths.TEACHERS / "walker-walk-1m-1"
    folder.mkdir()
    torch.manual_seed(0)
    for file in (folder.with_suffix(".safetensors"), folder / "50000.safetensors"):
        save_world_model(WorldModel(TINY, "walker-walk"), file)
    folder.with_suffix(".json").write_text(json.dumps({"decisions": 24}))


def test_cells_are_found_and_missing_ones_named(shipped):
    every = dataclasses.replace(PROFILES["smoke"].offline, snapshots=0)
    found, skipped = study_cells(every)
    assert [(c.name, c.decisions) for c in found] == [("walker-walk-1m-1", 24), ("walker-walk-1m-1/50000", 50_000)]
    assert [str(c.label) for c in found] == ["walker-walk-1m-1", "walker-walk-1m-1-50000"]
    assert len(skipped) == 5 and skipped[0].name == "walker-walk-1m-1/2500"
    assert len(study_cells(PROFILES["smoke"].offline)[0]) == 2  # the first and the last of them
    found, skipped = study_cells(every, "cartpole-swingup", "5m", 2)
    assert not found and skipped[-1].name == "cartpole-swingup-5m-2/20000"
    assert len(study_cells(every, "walker-walk", "all")[0]) == 2


def trained(cell, *decisions):
    """Snapshots where the cell's run was trained."""
    folder = paths.CACHE / "training" / cell / "snapshots"
    folder.mkdir(parents=True, exist_ok=True)
    for n in decisions:
        save_world_model(WorldModel(TINY, "walker-walk"), folder / f"{n}.safetensors")


def test_snapshots_are_taken_from_where_they_were_trained_if_it_is_the_same_run(shipped):
    trained("walker-walk-1m-2", 2_500, 50_000)
    every = dataclasses.replace(PROFILES["smoke"].offline, snapshots=0, seeds=(2,))
    (first, last), skipped = study_cells(every)
    assert str(first.label) == "walker-walk-1m-2-2500" and first.source == str(first.file) and first.file.is_file()
    assert last.decisions == 50_000 and [s.decisions for s in skipped] == [5_000, 10_000, 20_000, 35_000]
    trained("walker-walk-1m-1", 2_500)  # by another run than the one that is shipped
    every = dataclasses.replace(every, seeds=(1,))
    assert [s.decisions for s in study_cells(every)[0]] == [24, 50_000]
    run = paths.CACHE / "training" / "walker-walk-1m-1" / "snapshots"
    (run / "24.safetensors").write_bytes((paths.TEACHERS / "walker-walk-1m-1.safetensors").read_bytes())
    found, _ = study_cells(every)
    assert [(s.decisions, s.file is None) for s in found] == [(24, True), (2_500, False), (50_000, True)]
    trained("walker-walk-1m-3", 2_500, 27_500)
    found, _ = study_cells(dataclasses.replace(every, seeds=(3,)))
    assert [str(s.label) for s in found] == ["walker-walk-1m-3-2500", "walker-walk-1m-3-27500"]  # and where it ended


def test_parameters_are_checked(shipped):
    study = resolve_study("smoke", "walker-walk", "1m", 1, "", "cpu", states=4, k=3)
    assert (study.sizes.states, study.sizes.k, study.sizes.candidates) == (4, 3, 2) and len(study.cells) == 2
    assert resolve_study("paper", "all", "1m", 0, "", "cpu", states=40).sizes.candidates == 40
    (mine,) = resolve_study("smoke", "walker-walk", "1m", 1, "walker-walk-1m-1/50000", "cpu").cells
    assert (str(mine.label), mine.decisions) == ("walker-walk-1m-1-50000", None)
    with pytest.raises(ConfigError, match="plays one task; give it as task, one of: cartpole-swingup"):
        resolve_study("smoke", "all", "1m", 0, "official/walker-walk-1", "cpu")


def test_seeds_of_the_study_are_its_own():
    first, last = study_seeds("bank, random", 1)[0], study_seeds("starts", 1)[0]
    assert SEED_BLOCKS["buffer"] + 90_000_000 <= first < last < SEED_BLOCKS["trial"]
    assert len({study_seeds(purpose, 1)[0] for purpose in snapshots.SEEDS}) == 5


def test_the_papers_study_is_the_one_that_was_asked_for():
    """What is fixed: searches, whole episodes, at least 150 states, k. Numbers of episodes are what time allows."""
    paper = PROFILES["paper"].offline
    assert paper == OfflineStudy() and set(paper.tasks) == set(SCORED)
    searches = benches.Bench(None, "paper", paper)
    assert (searches.shooting, searches.cem) == (SHOOTING, CEM)
    assert paper.decisions == paper.arm_decisions == 500 and paper.states >= 150 and paper.k == 10
    assert paper.actions_per_state == paper.snapshots == 0 and paper.mppi_episodes == 10


def parts():
    """The files that are kept of cells."""
    return sorted(p.name for p in (paths.CACHE / "offline").iterdir() if not p.name.endswith(".meta.json"))


def execute(**given):
    run_notebook("06_offline_vs_downstream", profile="smoke", **given)


def test_the_notebook_measures_what_there_is_and_resumes(shipped, monkeypatch, capsys):
    execute()
    said = capsys.readouterr()
    assert "cell 1 of 2: walker-walk-1m-1" in said.out and "cell 2 of 2: walker-walk-1m-1-50000" in said.out
    folder = paths.results("smoke") / "offline"
    cells, made = pd.read_csv(folder / "cells.csv"), parts()
    wanted = """task size seed decisions m1 m2 m3 m4 m5 cpg cpg_low cpg_high verdict teacher_return kept_e3 kept_e6
        cpg_return decoder_error m1_random m5_on_policy m3_latent m4_skipped"""
    assert set(wanted.split()) <= set(cells) and cells["decisions"].tolist() == [24, 50_000]
    assert cells[["m1", "m2", "teacher_return", "decoder_error"]].gt(0).all(axis=None) and cells["seed"].eq(1).all()
    gaps = pd.read_csv(folder / "gaps.csv")
    assert gaps["planner"].tolist() == ["shooting", "cem"] * 2 and gaps["episodes"].eq(2).all()
    assert gaps.groupby("planner")["oracle_return"].nunique().eq(1).all()  # one oracle for both cells
    table = pd.read_csv(folder / "correlations.csv")
    wanted = "task metric target n spearman kendall p_permutation low high loo_min loo_max"
    assert set(wanted.split()) <= set(table) and table["n"].le(2).all() and table["spearman"].isna().all()

    played = []
    monkeypatch.setattr(benches, "model_metrics", functools.wraps(model_metrics)(lambda *a: played.append(a)))
    before = (folder / "cells.csv").read_bytes()
    execute()  # from the result files
    assert "cell 1" not in capsys.readouterr().out and (folder / "cells.csv").read_bytes() == before
    (paths.TEACHERS / "walker-walk-1m-1" / "50000.safetensors").unlink()
    execute()  # the rows stay without the weights
    assert "skipped" not in capsys.readouterr().out and (folder / "cells.csv").read_bytes() == before
    (folder / "cells.csv").unlink()
    execute()  # from what is kept of each part, with one cell less
    said = capsys.readouterr().out
    assert "cell 1 of 1" in said and "50000.safetensors" in said and not played
    assert len(pd.read_csv(folder / "cells.csv")) == 1
    assert parts() == made
    assert read_sidecar(folder / "cells.csv")["skipped"][0].endswith("50000.safetensors")


def test_weights_that_were_measured_under_another_name_are_known(shipped, monkeypatch):
    execute(task="walker-walk", teacher="walker-walk-1m-1/50000")
    folder = paths.results("smoke") / "offline"
    assert pd.read_csv(folder / "cells.csv")["decisions"].isna().all()
    execute()
    assert pd.read_csv(folder / "cells.csv")["decisions"].tolist() == [24, 50_000]
    monkeypatch.setattr(benches.Bench, "rows", None)
    execute(task="walker-walk", teacher="walker-walk-1m-1/50000")
    assert pd.read_csv(folder / "cells.csv")["decisions"].tolist() == [24, 50_000]


def test_rows_without_weights_stay_while_they_are_what_would_be_measured(shipped, monkeypatch, capsys):
    """Rows whose files are gone: of this code (seed 2), of code of before and without weights (3), and of no run of the
    study (9). A run that is here, and has not been measured, may be another one than its rows are of."""
    sizes = dataclasses.replace(PROFILES["smoke"].offline, seeds=(2, 3), snapshots=0)
    study = dataclasses.replace(resolve_study("smoke", "walker-walk", "1m", 0, "", "cpu"), cells=[], sizes=sizes)
    monkeypatch.setattr(benches.Bench, "rows", None)  # nothing is measured

    def key(weights):
        return benches.row_key(weights, "walker-walk", sizes)

    def rows(seed, key, weights="a" * 64, decisions=2_500):
        cell = f"walker-walk-1m-{seed}-{decisions}"
        about = {"cell": cell, "task": "walker-walk", "size": "1m", "seed": seed, "decisions": decisions, "key": key}
        return about | {"m1": 0.5, "weights": weights}, [about | {"planner": "shooting"}]

    kept = [rows(2, key("a" * 64)), rows(2, key("e" * 64), "e" * 64, 60_000)]  # the second is the end of its run
    others = [rows(3, "code-before"), rows(3, key("c" * 64), None, 5_000), rows(9, key("d" * 64), "d" * 64)]
    found = [*kept, *others]
    write_tables("smoke", [row for row, _ in found], [gap for _, gaps in found for gap in gaps], [])
    study = dataclasses.replace(study, skipped=study_cells(sizes)[1])
    cells, gaps, skipped = measure_cells(study)
    assert [(row["seed"], row["decisions"]) for row in cells] == [(2, 2_500), (2, 60_000)] and cells[0]["m1"] == 0.5
    assert [gap["decisions"] for gap in gaps] == [2_500, 60_000]
    assert len(skipped) == 11 and skipped[0].endswith("walker-walk-1m-2/5000.safetensors")
    assert "are here: walker-walk-1m-3-2500, walker-walk-1m-3-5000\n" in capsys.readouterr().out
    harder = dataclasses.replace(study, sizes=dataclasses.replace(sizes, k=sizes.k + 1))
    assert measure_cells(harder)[:2] == ([], [])
    assert "walker-walk-1m-2-2500, walker-walk-1m-2-60000, walker-walk-1m-3" in capsys.readouterr().out
    trained("walker-walk-1m-2", 5_000)
    assert measure_cells(study)[:2] == ([], [])  # it was not asked for, and yet it is here


def test_the_notebook_finishes_where_no_weights_are(shipped, capsys):
    execute(task="cartpole-swingup")
    said = capsys.readouterr().out
    assert "0 cells" in said and said.count("skipped, as there are no weights: ") == 2  # of two snapshots
    assert pd.read_csv(paths.results("smoke") / "offline" / "cells.csv").empty


# ------------------------------------------------------------------------------------------------------- the tables


def cells(tasks=("cartpole-swingup", "walker-walk"), runs=3, steps=6, seed=0):
    """Cells in which a hidden quality improves with training, and M4 alone tells it beyond that."""
    rng, rows = np.random.default_rng(seed), []
    for task in tasks:
        for run in range(1, runs + 1):
            for step in range(steps):
                quality = step + 2 * rng.normal()
                row = {"cell": f"{task}-{run}-{step}", "task": task, "size": "1m", "seed": run}
                row |= {"decisions": 2500 * (step + 1), "verdict": "INCONCLUSIVE"}
                row |= {metric: -sign * step + rng.normal() for metric, sign in METRICS.items()}
                row |= {f"{m}_{b}": row[m] for m in ("m1", "m2", "m3", "m4", "m5") for b in ("random", "on_policy")}
                row |= {target: sign * quality / 6 for target, sign in TARGETS.items()}
                row |= {f"{t}_{end}": row[t] + d for t in TARGETS for end, d in (("low", -0.2), ("high", 0.2))}
                rows.append(row | {"m4": quality / 6 + 0.05 * rng.normal()})
    return pd.DataFrame(rows)


@pytest.fixture
def few(monkeypatch):
    """Five metrics of one bank, as each takes its time."""
    monkeypatch.setattr(tables, "METRICS", {name: METRICS[name] for name in tables.MAIN_METRICS})
    monkeypatch.setattr(tables, "BANKS", ())


def test_correlations_are_within_tasks_and_pooled_only_without_units(few, monkeypatch):
    table = correlations(cells()).set_index(["task", "metric", "bank", "target"]).sort_index()
    best = table.loc["walker-walk", "m4", "mixed", "teacher_return"]
    assert best["n"] == 18 and best["spearman"] > 0.9 and best["p_permutation"] < 0.01 and best["expected"] == 1
    assert best["low"] < best["spearman"] <= best["high"] and best["loo_min"] <= best["spearman"] <= best["loo_max"]
    assert 0.9 < best["attenuation"] < 1
    assert table.loc["walker-walk", "m4", "mixed", "cpg"]["spearman"] < -0.9
    pooled = table.loc[ALL].index.to_frame()
    assert set(pooled["metric"]) == {"m3", "m4", "m5"}
    assert "teacher_return" not in set(pooled["target"]) and table.loc[ALL, "m4", "mixed", "cpg"]["n"] == 36
    by_rank = table.loc[ALL_RANKS, "m1", "mixed", "teacher_return"]
    assert by_rank["n"] == 36 and not by_rank["attenuation"] > 0
    # Training lasts longer in one task: what is held fixed is its rank within the task, too.
    longer = cells()
    longer.loc[longer["task"] == "walker-walk", "decisions"] *= 10
    again = correlations(longer).set_index(["task", "metric", "bank", "target"])["partial"]
    assert again[ALL_RANKS, "m1", "mixed", "teacher_return"] == pytest.approx(by_rank["partial"])
    trained = table.loc["walker-walk", "decisions", "mixed", "teacher_return"]  # what every metric has to beat
    assert trained["spearman"] > 0.5 and trained["expected"] == 1 and np.isnan(trained["partial"])
    monkeypatch.undo()
    one = correlations(cells(tasks=("walker-walk",), runs=1))
    assert set(one["metric"]) == set(METRICS) | {"decisions"}
    assert len(one) == (len(METRICS) + 1 + 2 * 5) * len(TARGETS)
    assert set(one["task"]) == {"walker-walk"} and one["p_permutation"].isna().all() and one["p_naive"].notna().any()


def test_ranks_within_tasks_ignore_what_tasks_have_in_common(few):
    """A metric with another unit in each task: its values do not correlate over tasks, its ranks do."""
    table = cells()
    far = table["task"] == "walker-walk"
    table.loc[far, "m4"] *= 1000
    table.loc[far, ["cpg", "cpg_return", "kept_e3", "kept_e6"]] -= 50
    found = correlations(table).set_index(["task", "metric", "bank", "target"])["spearman"]
    assert found[ALL_RANKS, "m4", "mixed", "kept_e3"] > 0.9 > abs(found[ALL, "m4", "mixed", "kept_e3"])


def test_differences_are_signed_so_that_larger_is_better(few):
    table = differences(cells()).set_index(["task", "metric", "baseline", "target"])
    for target in TARGETS:  # some of them, and M1, are better when smaller
        row = table.loc["cartpole-swingup", "m4", "m1", target]
        assert row["difference"] > 0.2 and row["low"] > 0, target
    single = differences(cells(tasks=("walker-walk",), runs=1)).set_index(["metric", "baseline", "target"])
    row = single.loc["m4", "m1", "teacher_return"]  # nothing to exchange, so only what takes cells for independent
    assert np.isnan(row["low"]) and row["low_naive"] <= row["difference"] <= row["high_naive"]
    assert ALL not in table.index.get_level_values(0) and ALL_RANKS in table.index.get_level_values(0)


def test_what_needs_no_decoder_is_compared_with_its_like(monkeypatch):
    names = [f"{name}{end}" for name in tables.MAIN_METRICS for end in ("", "_latent")]
    monkeypatch.setattr(tables, "METRICS", {name: METRICS[name] for name in names})
    table = cells(tasks=("walker-walk",), runs=1)
    table["m5_latent"] = -table["teacher_return"]  # regret: less is better
    found = differences(table).set_index(["metric", "baseline", "target"])["difference"]
    pairs = {(metric, baseline) for metric, baseline, _ in found.index}
    wanted = {(f"{m}{end}", f"{b}{end}") for m in ("m3", "m4", "m5") for b in ("m1", "m2") for end in ("", "_latent")}
    assert pairs == wanted
    own = table["m1_latent"].corr(table["teacher_return"], method="spearman")
    assert found["m5_latent", "m1_latent", "teacher_return"] == pytest.approx(1 + own)


def test_missing_numbers_are_left_out_and_no_cells_give_empty_tables(few, home):
    table = cells(tasks=("walker-walk",), runs=1).astype(object)
    table.loc[0, "m3"] = table.loc[1, "kept_e3"] = None
    table["m5"] = None
    table.loc[2, "decisions"] = None  # a teacher from elsewhere
    counts = correlations(table).set_index(["metric", "bank", "target"])["n"]
    cases = ("m1", "mixed", "cpg"), ("m3", "mixed", "kept_e3"), ("m5", "mixed", "cpg")
    assert [counts[case] for case in cases] == [5, 3, 0]
    assert write_tables("smoke", [], [], ["a.safetensors"]).empty
    assert pd.read_csv(paths.results("smoke") / "offline" / "correlations.csv").empty


# ------------------------------------------------------------------------------------------------------- the figures


def test_the_figures_show_every_task_metric_and_target(few, home):
    write_tables("smoke", cells(runs=2, steps=4).to_dict("records"), [], [])
    figure.main(["--profile", "smoke"])
    folder = paths.figures("smoke")
    assert {p.name for p in folder.glob("*.svg")} == {"offline.svg", "offline-cells.svg"}
    shown = figure.forest(pd.read_csv(paths.results("smoke") / "offline" / "correlations.csv")).to_dict()
    assert [panel["title"]["text"] for panel in shown["hconcat"]] == list(figure.TARGET_TITLES.values())
    points = shown["datasets"][shown["hconcat"][0]["layer"][-1]["data"]["name"]]
    assert len(points) == 5 * 3 and all(p["rho"] == p["spearman"] * p["expected"] for p in points)
    assert all(p["low"] <= p["rho"] <= p["high"] for p in points if p["low"] is not None)
    of_metrics, of_cells = (pdf_text(folder / f"{name}.pdf") for name in ("offline", "offline-cells"))
    words = ("M1 one-step error", "M5 regret", "Planning gap", "walker-walk", "all tasks")
    assert all(word in of_metrics for word in words)
    words = ("M1", "M5", "cartpole-swingup", "walker-walk", "Planning gap", "Teacher's return")
    assert all(word in of_cells for word in words)


def test_the_figures_also_stand_with_few_cells(few, home):
    two = cells(tasks=("walker-walk",), runs=1, steps=2).astype(object)
    two["m3"] = None
    write_tables("smoke", two.to_dict("records"), [], [])
    figure.main(["--profile", "smoke"])
    assert "walker-walk" in pdf_text(paths.figures("smoke") / "offline-cells.pdf")
