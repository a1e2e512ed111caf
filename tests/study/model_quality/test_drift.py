"""Model error: each number against slow, obvious twins and closed forms; buffers, what is refused, results, figure."""

import dataclasses
import functools
import itertools
import json
import math
import struct

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from figures import charts
from lib.config import ConfigError
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.seeds import episode_seeds
from lib.records.store import intact, read_sidecar, read_table, write_table
from lib.study.cells import Cell, resolve
from lib.study.model_quality import buffers, drift, drift_study
from lib.study.model_quality.buffers import GENERATED, check, generate, read
from lib.study.model_quality.drift import BATCH, TAIL, error_rows, growth_exponent, predictions
from lib.study.model_quality.drift_study import models_of, study, summary, write_model_error
from lib.study.profiles import ErrorStudy
from lib.study.stats.intervals import bootstrap_ci
from lib.teachers.replay import Episode, EpisodeFileError, save_episodes
from lib.weights.native import save_world_model
from tests import tiny
from tests.bare import run_notebook
from tests.figures.test_charts import load_figure, pdf_text
from tests.test_notebooks import ship
from tests.tiny import ACTIONS, LATENT, OBS, LatentModel, tiny_model

CELL = "tiny-task-1m-7"
HORIZON = 4


def episode(length, seed=0, width=OBS, actions=ACTIONS):
    random = np.random.default_rng(seed)
    obs = random.normal(size=(length + 1, width)).astype(np.float32)
    return Episode(obs, random.uniform(-1, 1, (length, actions)).astype(np.float32), random.random(length, np.float32))


def short_sighted(wm, discount=0.8):
    """A model of so small a discount that returns of short episodes are known."""
    wm.config = dataclasses.replace(wm.config, discount=discount)
    return wm


# ------------------------------------------------------------------------------------------------ what is measured


def slow(wm, episodes, start, k):
    """Everything that `predictions` says of one episode's start state and step ahead, in plain numpy."""
    e = episodes[start[0]]

    def encode(row):
        return wm.encode(torch.from_numpy(e.obs[row])).numpy().astype(float)

    def value(z):
        z = torch.tensor(z, dtype=torch.float32).unsqueeze(0)
        return float(np.mean([float(head) for head in wm.q(z, wm.policy(z)[0])]))

    def tv(a, b):
        return np.mean([0.5 * np.abs(x - y).sum() for x, y in zip(a.reshape(-1, 8), b.reshape(-1, 8), strict=True)])

    z = wm.encode(torch.from_numpy(e.obs[start[1]])).unsqueeze(0)
    for i in range(k):
        action = torch.from_numpy(e.actions[start[1] + i]).unsqueeze(0)
        reward, z = float(wm.reward(z, action)), wm.next(z, action)
    z, at = z[0].numpy().astype(float), start[1] + k
    true, first, gamma, rest = encode(at), encode(start[1]), wm.config.discount, len(e) - at
    mean = np.mean([wm.encode(torch.from_numpy(o)).numpy().astype(float) for x in episodes for o in x.obs], 0)
    togo = sum(gamma**i * float(e.rewards[at + i]) for i in range(rest)) + gamma**rest * value(encode(len(e)))
    togo = togo if gamma**rest <= TAIL else math.nan
    return {
        "mse": np.mean((z - true) ** 2),
        "tv": tv(z, true),
        "cosine": z @ true / np.linalg.norm(z) / np.linalg.norm(true),
        "persistence_mse": np.mean((first - true) ** 2),
        "persistence_tv": tv(first, true),
        "mean_latent_mse": np.mean((mean - true) ** 2),
        "mean_latent_tv": tv(mean, true),
        "reward_mse": (reward - e.rewards[at - 1]) ** 2,
        "reward": e.rewards[at - 1],
        "value_error": abs(value(z) - value(true)),
        "value": value(true),
        "return_error": abs(value(z) - togo),
        "return_error_encoded": abs(value(true) - togo),
    }


def test_every_number_is_that_of_the_slow_twin(monkeypatch):
    monkeypatch.setattr(drift, "BATCH", 5)  # several batches, the last one smaller
    wm = short_sighted(tiny_model(num_q=3))
    episodes = [episode(18, 1), episode(3, 2), episode(4, 3), episode(23, 4)]
    owner, found = predictions(wm, episodes, HORIZON)
    starts = [(i, t) for i, e in enumerate(episodes) for t in range(len(e) - HORIZON + 1)]
    assert owner.tolist() == [i for i, _ in starts] and set(owner) == {0, 2, 3}  # one is shorter than the horizon
    for row, k in itertools.product(range(0, len(starts), 4), range(1, HORIZON + 1)):
        twin = slow(wm, episodes, starts[row], k)
        assert set(twin) == set(found)
        for name, wanted in twin.items():
            assert found[name][row, k - 1] == pytest.approx(wanted, rel=2e-4, abs=1e-6, nan_ok=True), (name, row, k)
    known = np.isfinite(found["return_error"])
    assert 0 < known.sum() < known.size and (np.isfinite(found["return_error_encoded"]) == known).all()


def imagined(wm, lengths):
    """Episodes that follow the model exactly, with observations that are its latents."""
    made = []
    for number, length in enumerate(lengths):
        z, rewards, e = [tiny.latents(1, seed=number)], [], episode(length, number)
        for action in torch.from_numpy(e.actions).unsqueeze(1):
            rewards.append(float(wm.reward(z[-1], action)))
            z.append(wm.next(z[-1], action))
        made.append(Episode(torch.cat(z).numpy(), e.actions, np.array(rewards, np.float32)))
    return made


def rows_of(wm, episodes, on_policy=False):
    return error_rows(*predictions(wm, episodes, HORIZON), on_policy)


def test_a_perfect_model_has_no_error():
    wm = short_sighted(tiny_model(kind=LatentModel))
    rows = rows_of(wm, imagined(wm, [30, 30]), on_policy=True)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        for name in ("mse", "tv", "reward_mse", "value_error", "share"):
            assert row[name] == pytest.approx(0, abs=1e-6)
        assert row["cosine"] == pytest.approx(1) and row["return_error"] == pytest.approx(row["return_error_encoded"])
        assert row["mean_latent_mse"] > 1e-4 and row["reward_variance"] > 0


def test_models_that_are_baselines_have_the_error_of_the_baselines():
    wm = tiny_model(kind=LatentModel)
    episodes = imagined(wm, [9, 12])
    wm.next = lambda z, a: z  # predicts that nothing changes
    for row in rows_of(wm, episodes):
        assert (row["mse"], row["tv"]) == (row["persistence_mse"], row["persistence_tv"])
    constant = torch.from_numpy(np.concatenate([e.obs for e in episodes]).mean(0))
    wm.next = lambda z, a: constant.expand(len(z), -1)
    for row in rows_of(wm, episodes):
        assert row["mse"] == pytest.approx(row["mean_latent_mse"]) and row["share"] == pytest.approx(1)
        assert row["tv"] == pytest.approx(row["mean_latent_tv"]) and row["persistence_mse"] != row["mse"]


def test_an_error_that_adds_up_grows_with_the_square_of_the_steps():
    wm, still = tiny_model(kind=LatentModel), episode(8, width=LATENT)
    still.obs[:] = tiny.latents(1).numpy()
    wm.next = lambda z, a: z + 0.1
    rows = rows_of(wm, [still])
    assert [row["mse"] for row in rows] == pytest.approx([0.01 * k**2 for k in range(1, 5)], rel=1e-4)
    assert rows[0]["growth"] is None and rows[1]["growth"] == pytest.approx(4, rel=1e-4)
    assert growth_exponent([row["mse"] for row in rows]) == pytest.approx(2, rel=1e-4)
    assert {row["share"] for row in rows} == {None} and rows[0]["persistence_mse"] == 0  # no baseline to share in
    assert rows[0]["mse_low"] is None and rows[0]["episodes"] == 1  # one episode says nothing about spread


def test_growth_of_known_curves():
    steps = np.arange(1, 13)
    for p in (0.0, 0.5, 1.0, 2.0):
        assert growth_exponent(0.3 * steps**p) == pytest.approx(p, abs=1e-9)
    assert math.isnan(growth_exponent([0.1])) and math.isnan(growth_exponent([0.1, 0.0]))


def test_rows_are_the_plain_statistics_of_the_predictions():
    random = np.random.default_rng(0)
    owner = np.repeat([4, 0, 9, 2], 25)
    names = "mse tv reward value value_error mean_latent_mse return_error return_error_encoded".split()
    columns = {name: random.gamma(2.0, size=(100, 3)) * (1 + owner[:, None]) for name in names}
    columns["return_error"][:90] = math.nan
    rows, off_policy = error_rows(owner, columns, True), error_rows(owner, columns, False)
    for k, row in enumerate(rows):
        mse = columns["mse"][:, k]
        wanted = [mse.mean(), mse.min(), mse.max(), mse.std(ddof=1)]
        assert [row[f"mse{end}"] for end in ("", "_min", "_max", "_std")] == pytest.approx(wanted)
        by_episode = [mse[owner == number].mean() for number in (0, 2, 4, 9)]
        # the same number of starts in every episode: the interval is that of a mean of four
        assert (row["mse_low"], row["mse_high"]) == pytest.approx(bootstrap_ci(by_episode))
        assert row["share"] == pytest.approx(mse.mean() / columns["mean_latent_mse"][:, k].mean())
        assert row["share_low"] <= row["share"] <= row["share_high"]
        assert row["reward_variance"] == pytest.approx(columns["reward"][:, k].var())
        assert row["value_mean"] == pytest.approx(columns["value"][:, k].mean())
        for name in ("return_error", "return_error_encoded"):
            assert row[name] == pytest.approx(columns[name][90:, k].mean()) and off_policy[k][name] is None
        assert (row["return_states"], off_policy[k]["return_states"]) == (10, 0)
        assert (row["starts"], row["episodes"], row["batches"]) == (100, 4, 1)
    assert rows[2]["growth"] == pytest.approx(rows[2]["mse"] / rows[1]["mse"])
    json.dumps(rows, allow_nan=False)


def test_no_more_states_than_asked_for_and_none_twice(monkeypatch):
    monkeypatch.setattr(drift, "BATCH", 4)
    wm, episodes = tiny_model(), [episode(20, 1), episode(9, 2), episode(2, 3)]
    everything = predictions(wm, episodes, 3, batches=7)[1]["mse"]
    assert len(everything) == 18 + 7
    some, again, other = (predictions(wm, episodes, 3, 2, seed)[1]["mse"] for seed in (0, 0, 1))
    assert len(some) == 8 == len({tuple(row) for row in some.tolist()})
    assert (some == again).all() and (some != other).any()
    for row in some:
        assert np.isclose(everything, row, rtol=1e-4).all(1).any()


# -------------------------------------------------------------------------------------------------------- buffers


@pytest.fixture
def env(home, monkeypatch):
    """An environment that costs nothing, beside a shipped teacher."""
    keep_model(CELL)
    made = tiny.fresh_env()
    monkeypatch.setattr(buffers, "make_env", made)
    return made


def keep_model(name, seed=0):
    path, wm = paths.TEACHERS / f"{name}.safetensors", tiny_model(seed=seed)
    path.parent.mkdir(exist_ok=True)
    wm.task = "tiny-task"
    save_world_model(wm, path)


def settings():
    return resolve(profile="smoke", task="tiny-task", model_size="1m", seed=7, teacher="", device="cpu")


def measured(*arguments, **changes):
    """What a study of the cell returns: its rows, and what is told about them."""
    return study(settings(), settings().cell, *arguments, **changes)


def test_a_buffer_is_played_once_and_more_episodes_only_add(env, monkeypatch):
    monkeypatch.setattr(buffers, "SHARD", 2)
    play = functools.partial(generate, settings(), settings().cell)
    made = {name: play(name, 3, 0.3) for name in GENERATED}
    starts = {name: [tuple(e.obs[0]) for e in source.episodes] for name, source in made.items()}
    assert starts["teacher"] == starts["noisy"] == starts["random"] and len(set(starts["teacher"])) == 3
    assert [s.on_policy for s in made.values()] == [True, False, False]
    assert {seed for seed, *_ in env.steps} == set(episode_seeds("buffer", 3, 7))
    for a, b in itertools.combinations(made.values(), 2):
        assert (a.episodes[0].actions != b.episodes[0].actions).any() and a.key != b.key
    env.steps.clear()
    again = play("noisy", 3, 0.3)
    assert not env.steps and again.key == made["noisy"].key
    assert (again.episodes[2].obs == made["noisy"].episodes[2].obs).all()
    (other,) = play("noisy", 1, 0.3, buffer_seed=2).episodes
    assert (other.obs[0] != again.episodes[0].obs[0]).any()  # other start states
    env.steps.clear()
    more = play("noisy", 4, 0.3)  # the first two are a file of their own
    assert len(more.episodes) == 4 and {s for s, *_ in env.steps} == set(episode_seeds("buffer", 2, 7, first=2))
    assert (more.episodes[2].actions == made["noisy"].episodes[2].actions).any()
    env.steps.clear()
    play("teacher", 3, 0.7), play("random", 3, 0.7)
    assert not env.steps  # noise is the noisy one's alone
    play("noisy", 3, 0.7)
    assert env.steps


def kept(cell=CELL, name="test_buffer", episodes=None):
    """A file where a training run keeps its episodes."""
    file = paths.CACHE / "training" / cell / f"{name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_episodes(file, episodes or [episode(6, 1), episode(9, 2)])
    return file


def test_what_training_kept_is_read_as_it_is(env):
    cell = Cell.parse(CELL)
    for name, on_policy in (("train", False), ("test", True)):
        file = kept(name=f"{name}_buffer")
        before = file.read_bytes()
        by_name, by_file = read(cell, name), read(cell, str(file))
        assert [len(e) for e in by_name.episodes] == [6, 9] and by_name.on_policy == on_policy
        assert not by_file.on_policy  # nobody knows who played a file's episodes
        assert (by_name.name, by_file.name, by_name.key) == (name, f"{name}_buffer", by_file.key)
        assert file.read_bytes() == before
    with pytest.raises(ConfigError, match="only the machine that trained walker-walk-1m-1 has; leave test out"):
        read(Cell.parse("walker-walk-1m-1"), "test")
    with pytest.raises(ConfigError, match="buffer='tset' is no file, and none of: teacher, noisy, random, train, test"):
        read(cell, "tset")


@pytest.mark.parametrize(
    ("episodes", "reason"),
    [
        ([episode(3)], "buffer test is too short: its longest episode has 3 decisions, and 4 are to be predicted"),
        ([episode(9, width=3)], r"observations and actions \[\(3, 2\)\] wide, but tiny-task has \(5, 2\)"),
        ([episode(9), episode(9, actions=1)], r"\[\(5, 1\), \(5, 2\)\] wide"),
        ([Episode(np.zeros((6, OBS), np.float32), np.full((5, ACTIONS), 1.5, np.float32), np.zeros(5, np.float32))],
         "buffer test holds an action of 1.5"),
    ],
)  # fmt: skip
def test_a_buffer_that_does_not_fit_is_a_sentence(env, episodes, reason):
    kept()
    source = dataclasses.replace(read(Cell.parse(CELL), "test"), episodes=episodes)
    with pytest.raises(EpisodeFileError, match=reason):
        check(source, tiny_model(), "tiny-task", HORIZON)


def test_empty_and_broken_files_and_those_of_other_tasks_are_sentences(env, tmp_path):
    cell, file, mine, broken = Cell.parse(CELL), kept(), tmp_path / "mine.safetensors", episode(5)

    def refused(buffer, reason):
        with pytest.raises(EpisodeFileError, match=reason):
            read(cell, str(buffer))

    empty = {"obs": np.zeros((0, OBS)), "actions": np.zeros((0, ACTIONS)), "rewards": np.zeros(0)}
    save_file({k: v.astype(np.float32) for k, v in empty.items()} | {"lengths": np.zeros(0, np.int64)}, file)
    refused("test", "holds no episodes")
    broken.rewards[2] = np.nan
    kept(episodes=[broken])
    refused("test", "holds values that are not finite")
    file.write_bytes(b"nothing of the kind")
    refused("test", "is not a file of episodes")
    refused(kept("other-task-1m-1"), "holds episodes of other-task, not of tiny-task")
    save_episodes(mine, [episode(6)])
    assert read(cell, str(mine)).name == "mine"
    mine.with_name("mine.safetensors.meta.json").write_text('{"task": "other-task"}')
    refused(mine, "holds episodes of other-task")


# ---------------------------------------------------------------------------------------------------------- study


@pytest.fixture
def snapshots(env):
    for number, decisions in enumerate((500, 2500, 10000)):
        keep_model(f"{CELL}/{decisions}", seed=number + 1)
    (paths.TEACHERS / f"{CELL}.json").write_text('{"decisions": 20000}')


def test_snapshots_come_in_the_order_of_training(snapshots, tmp_path):
    wanted = {f"{CELL}/500": 500, f"{CELL}/2500": 2500, f"{CELL}/10000": 10000, CELL: 20000}
    assert list(models_of(CELL).items()) == list(wanted.items())
    assert models_of(f"{CELL}/2500") == {f"{CELL}/2500": 2500}
    elsewhere = tmp_path / "77.safetensors"
    elsewhere.write_bytes((paths.TEACHERS / f"{CELL}.safetensors").read_bytes())
    assert models_of(str(elsewhere)) == {str(elsewhere): None}


def test_a_study_measures_every_model_on_every_source_once(env, snapshots, monkeypatch):
    kept(episodes=[episode(40, 1), episode(40, 2)])
    asked = dict(buffer="teacher, random,test", horizon=HORIZON)
    rows, about = measured(**asked)
    table = pd.DataFrame(rows)
    counts = table.groupby(["source", "model"], sort=False)["step"].apply(list)
    assert len(counts) == 3 * 4 and all(steps == [1, 2, 3, 4] for steps in counts)
    assert counts.index.get_level_values(0).drop_duplicates().tolist() == ["teacher", "random", "test"]
    assert table[table["model"] == CELL]["decisions"].unique().tolist() == [20000]
    assert set(table["starts"]) == {3 * (12 - HORIZON + 1), 2 * (40 - HORIZON + 1)} and (table["mse"] > 0).all()
    assert about["sources"]["random"]["planner"] is None and about["sources"]["test"]["episodes"] == 2
    for source, own in (("test", True), ("random", False)):  # a return is only known of the player's own model
        part = table[table["source"] == source]
        assert (part["on_policy"] == own).all()
    env.steps.clear()
    monkeypatch.setattr(drift_study, "predictions", functools.wraps(predictions)(lambda *a, **k: pytest.fail("again")))
    assert measured(**asked) == (rows, about) and not env.steps
    with pytest.raises(pytest.fail.Exception, match="again"):  # another horizon is another measurement
        measured(asked["buffer"], horizon=HORIZON - 1)


def test_returns_are_compared_only_where_the_player_is_measured(env, snapshots):
    kept(episodes=[episode(320, 1)]), kept(name="train_buffer", episodes=[episode(320, 1)])
    rows, _ = measured("test,train", horizon=2, batches=1)
    known = {(r["source"], r["model"]): r["return_states"] for r in rows if r["step"] == 1}
    assert known.pop(("test", CELL)) > 0 and set(known.values()) == {0} and len(known) == 7
    assert {r["batches"] for r in rows} == {1} and {r["starts"] for r in rows} == {BATCH}


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"buffer": "random,random"}, ConfigError, "two sources of one name"),
        ({"buffer": "random,nowhere"}, ConfigError, "buffer='nowhere' is no file"),
        ({"buffer": "random,test", "horizon": 10}, EpisodeFileError, "buffer test is too short"),
    ],
)
def test_settings_that_cannot_be_are_told_before_anything_is_played(env, changes, error, reason):
    kept()
    with pytest.raises(error, match=reason):
        measured(**changes)
    assert not env.steps


def test_kept_buffers_are_taken_by_default_where_the_profile_wants_them_and_they_are_there(env, capsys):
    given = settings()
    profile = dataclasses.replace(given.profile, errors=ErrorStudy(("random", "test", "train"), 2))
    given = dataclasses.replace(given, profile=profile)
    kept()
    rows, _ = study(given, given.cell, horizon=HORIZON)
    assert list(dict.fromkeys(row["source"] for row in rows)) == ["random", "test"]
    assert f"left out, as only the machine that trained {CELL} has them: train\n" in capsys.readouterr().out


def test_a_file_of_other_floats_is_measured_like_one_of_float32(tmp_path):
    wm, single = tiny_model(), episode(9)
    double = Episode(*(x.astype(np.float64) for x in (single.obs, single.actions, single.rewards)))
    one, other = (predictions(wm, [e], HORIZON)[1] for e in (single, double))
    assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def test_an_episode_too_short_for_the_horizon_is_told(env):
    with pytest.raises(EpisodeFileError, match="buffer random is too short: its longest episode has 12 decisions"):
        measured("random", horizon=13)


def test_results_are_a_table_and_a_text_that_say_the_same(env, snapshots):
    given = settings()
    rows, about = measured(horizon=HORIZON)
    write_model_error(given, given.cell, rows, about)
    folder = paths.results("smoke") / "model_error"
    table, text = read_table(folder / f"{CELL}.csv"), (folder / f"{CELL}_model_error.txt").read_text()
    columns = """source step mse mse_std mse_min mse_max tv cosine reward_mse batches episodes value_error growth
        persistence_mse mean_latent_mse decisions"""
    assert set(columns.split()) <= set(table) and len(table) == len(rows) == 3 * 4 * HORIZON
    assert table["mse"].tolist() == [row["mse"] for row in rows] and table["growth"].isna().sum() == 3 * 4
    assert intact(folder / f"{CELL}_model_error.txt")
    assert read_sidecar(folder / f"{CELL}.csv")["sources"]["noisy"]["noise"] == 0.3
    for source in GENERATED:
        own = table[(table["source"] == source) & (table["model"] == CELL)].iloc[-1]
        assert f"{source}: 3 episodes, 27 start states, batches of 256: 1" in text and f"{own['mse']:.4g}" in text
    for name in ("500", "2500", "10000"):
        share = table[(table["source"] == "random") & (table["model"] == f"{CELL}/{name}")]["share"].iloc[-1]
        assert f"{CELL}/{name}" in text and f"{share:.4g}" in text
    alone = [row for row in rows if row["model"] == CELL and row["step"] == 1]
    assert "grows" not in summary(given.cell, [r | {"mse": 0.0} for r in alone])
    assert "snapshot" not in summary(given.cell, alone)


# --------------------------------------------------------------------------------------------- figure and notebook

figure = load_figure("model_error")


def table(cell=CELL, sources=("teacher", "noisy", "random"), snapshots=(2500, 10_000), intervals=True) -> pd.DataFrame:
    task, size, seed = cell.rsplit("-", 2)
    rows = [
        dict(task=task, size=size, teacher_seed=int(seed), model=f"{cell}/{d}" if d else cell, decisions=d or 20_000)
        | dict(source=source, step=k, mse=2e-4 * k * n, mse_low=1.6e-4 * k * n if intervals else np.nan)
        | dict(mse_high=2.6e-4 * k * n if intervals else np.nan, persistence_mse=4e-3 * k, mean_latent_mse=6e-2)
        | dict(share=k * n / 60, share_low=0.8 * k * n / 60, share_high=1.3 * k * n / 60)
        for d in (*snapshots, None)
        for n, source in enumerate(sources, start=1)
        for k in range(1, 13)
    ]
    return pd.DataFrame(rows)


def keep(cell=CELL, **options):
    write_table(paths.results("smoke") / "model_error" / f"{cell}.csv", table(cell, **options))


def drawn():
    """The figure of what is kept, as a specification."""
    return figure.draw(figure.read("smoke")).to_dict()


def layers(panel, kind):
    return [layer for layer in panel["layer"] if layer["mark"]["type"] == kind]


def test_the_figure_is_drawn_from_the_results(home):
    keep()
    figure.main(["--profile", "smoke"])
    folder = paths.figures("smoke")
    assert sorted(p.name for p in folder.iterdir()) == ["model_error.pdf", "model_error.png", "model_error.svg"]
    text = pdf_text(folder / "model_error.pdf")
    for words in (figure.STEPS, figure.ERROR, figure.DECISIONS, figure.SHARE, *table()["source"].unique()):
        assert words in text
    assert figure.PERSISTENCE in text and figure.MEAN in text
    width, _ = struct.unpack(">II", (folder / "model_error.png").read_bytes()[16:24])
    assert width / charts.PNG_PPI == pytest.approx(6.8, abs=0.12)


def test_a_row_of_panels_for_each_cell_and_no_panel_without_snapshots(home):
    keep(), keep("cup-catch-5m-1", sources=("test",), snapshots=())
    spec = drawn()
    rows = spec["vconcat"]
    assert [len(row["hconcat"]) for row in rows] == [1, 2] and rows[0]["title"].startswith("cup-catch")
    (line,) = layers(rows[1]["hconcat"][0], "line")
    shown = pd.DataFrame(spec["datasets"][line["data"]["name"]])
    assert shown["model"].unique().tolist() == [CELL]
    assert shown["kind"].value_counts().to_dict() == {figure.MODEL: 36, figure.PERSISTENCE: 36}
    points = pd.DataFrame(spec["datasets"][layers(rows[1]["hconcat"][1], "point")[0]["data"]["name"]])
    assert sorted(points["decisions"].unique()) == [2500, 10_000, 20_000] and set(points["step"]) == {1, 3, 12}
    assert points["source"].unique().tolist() == ["teacher"]  # all models on the states of one source


def test_the_axis_of_training_is_named_below_the_last_row_that_has_it(home):
    keep(snapshots=()), keep("cup-catch-1m-1", snapshots=(2500,)), keep("acrobot-swingup-1m-1", snapshots=())
    rows = drawn()["vconcat"]
    assert len(rows) == 3
    (panel,) = (row["hconcat"][1] for row in rows if len(row["hconcat"]) > 1)
    assert layers(panel, "line")[0]["encoding"]["x"]["title"] == figure.DECISIONS


def test_many_cells_stand_in_a_grid_their_snapshots_below(home):
    cells = [f"acrobot-swingup-1m-{n}" for n in range(10)]
    for cell in cells:
        keep(cell, snapshots=(2500,) if cell.endswith("3") else ())
    figure.main(["--profile", "smoke"])
    teachers, trained = drawn()["vconcat"]
    assert [panel["title"]["text"] for panel in teachers["concat"]] == cells and teachers["columns"] == 3
    assert {panel["height"] for panel in teachers["concat"]} == {figure.ROWS_HEIGHT / 5 - figure.ROW_EXTRA}
    lines = [layers(panel, "line")[0]["encoding"] for panel in teachers["concat"]]
    named = [line["x"]["title"] for line in lines]
    assert named == 7 * [None] + 3 * [figure.STEPS]  # below the last panel of each column
    assert [line["y"]["title"] for line in lines] == 3 * [figure.ERROR, None, None] + [figure.ERROR]
    assert [line["color"]["legend"] is not None for line in lines] == [True] + 9 * [False]
    (panel,) = trained["concat"]
    assert panel["title"]["text"] == cells[3]
    assert layers(panel, "line")[0]["encoding"]["x"]["title"] == figure.DECISIONS


def test_missing_intervals_leave_the_line_and_the_same_table_gives_the_same_figure(home, tmp_path):
    for name, intervals in (("a", True), ("b", True), ("none", False)):
        keep(intervals=intervals)
        charts.save(figure.draw(figure.read("smoke")), tmp_path / name)
    a, b, none = ((tmp_path / f"{name}.svg").read_text() for name in ("a", "b", "none"))
    assert a == b != none and none.count("line mark") == a.count("line mark")


def test_a_folder_without_results_is_a_sentence(home):
    with pytest.raises(ResultError, match="holds no model error; run `make all"):
        figure.read("smoke")


def test_the_notebook_measures_and_writes(home):
    ship("walker-walk-1m-1")
    run_notebook("05_model_error", profile="smoke", horizon=5)
    written = read_table(paths.results("smoke") / "model_error" / "walker-walk-1m-1.csv")
    assert written["step"].max() == 5 and set(written["source"]) == set(GENERATED)
    assert (paths.results("smoke") / "model_error" / "walker-walk-1m-1_model_error.txt").is_file()
