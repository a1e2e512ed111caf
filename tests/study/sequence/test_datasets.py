"""Offline data: windows against a slow twin, files of others that are cut, refused or read, and datasets made here."""

import dataclasses
import json
import os
import pickle
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from lib.config import ConfigError
from lib.records import paths
from lib.records.store import write_table
from lib.study.cells import Cell, Settings
from lib.study.profiles import PROFILES
from lib.study.sequence import datasets, teacher_episodes
from lib.study.sequence.d4rl import COLUMNS, read_hdf5, read_pickle
from lib.study.sequence.datasets import dataset_label, load_dataset, read_minari, write_minari
from lib.study.sequence.teacher_episodes import KINDS, recorded, snapshots, sources
from lib.study.sequence.windows import OfflineDataError, Trajectory, TrajectorySet, Windows
from lib.teachers.replay import Episode, save_episodes
from lib.weights.native import save_world_model
from tests.tiny import ACTIONS, BUDGET, OBS, TinyEnv, fresh_env, tiny_model

CELL = Cell("tiny-task", "1m", 1)
SETTINGS = Settings(dataclasses.replace(PROFILES["smoke"], planner=BUDGET, decisions=6), (CELL,), "", "cpu")


def trajectories(*lengths):
    """Random ones, all different."""
    made = []
    for i, n in enumerate(lengths):
        random = np.random.default_rng([n, i])
        columns = random.normal(size=(n, OBS)), random.uniform(-1, 1, (n, ACTIONS)), random.normal(size=n)
        made.append(Trajectory(*(column.astype(np.float32) for column in columns)))
    return made


def some(*lengths):
    return TrajectorySet("some", trajectories(*lengths))


def equal(a, b):
    return len(a) == len(b) and all(
        np.array_equal(x, y) and x.dtype == y.dtype == np.float32
        for one, two in zip(a, b, strict=True)
        for x, y in zip(vars(one).values(), vars(two).values(), strict=True)
    )


# -------------------------------------------------------------------------------------------------- trajectories


@pytest.mark.parametrize("context", [1, 3, 20])
def test_a_window_is_what_one_reads_off_its_trajectory(context):
    """The slow twin: one window after the other, decision by decision."""
    data = trajectories(1, 7, 2, 12)
    windows, starts = Windows(data, context), [(t, start) for t in data for start in range(len(t))]
    batch = windows.starting_at(np.arange(len(windows)))
    for row, (t, start) in enumerate(starts):
        for k in range(context):
            at, wanted = start + k, (np.zeros(OBS), np.zeros(ACTIONS), 0, 0, False)
            if at < len(t):
                wanted = (t.obs[at], t.actions[at], np.float32(sum(float(r) for r in t.rewards[at:])), at, True)
            for column, want in zip(vars(batch).values(), wanted, strict=True):
                np.testing.assert_allclose(column[row, k].numpy(), want, rtol=1e-5, atol=1e-6)
    assert len(windows) == len(starts) == 22
    covered = windows.starting_at(windows.covering())  # every decision once
    np.testing.assert_array_equal(covered.obs[covered.mask].numpy(), np.concatenate([t.obs for t in data]))


def test_trajectories_are_drawn_in_proportion_to_their_length():
    lengths = [3, 30, 9, 60]
    windows = Windows([Trajectory(np.full((n, 1), i, np.float32), np.zeros((n, 1), np.float32), np.zeros(n, np.float32))
                       for i, n in enumerate(lengths)], 4)  # fmt: skip
    drawn = windows.sample(np.random.default_rng(0), 20_000)
    counts = np.bincount(drawn.obs[:, 0, 0].numpy().astype(int), minlength=4)
    assert chisquare(counts, 20_000 * np.array(lengths) / sum(lengths)).pvalue > 1e-3
    starts = drawn.timesteps[:, 0].numpy()[drawn.obs[:, 0, 0].numpy() == 1]  # and uniformly within one
    assert chisquare(np.bincount(starts, minlength=30)).pvalue > 1e-3
    again = windows.sample(np.random.default_rng(0), 20_000)
    assert torch.equal(again.obs, drawn.obs) and torch.equal(again.timesteps, drawn.timesteps)


@pytest.mark.parametrize("seed", range(4))
def test_a_trajectory_is_never_on_both_sides(seed):
    for n in (2, 3, 10, 25):
        data = some(*range(1, n + 1))
        sides = [[len(t) for t in side.trajectories] for side in data.split(0.1, seed)]
        assert sorted(sides[0] + sides[1]) == list(range(1, n + 1)) and len(sides[1]) == max(round(0.1 * n), 1)
    with pytest.raises(OfflineDataError, match="some holds one trajectory; two are needed"):
        some(5).split()


def test_the_key_follows_what_can_be_learnt():
    data = TrajectorySet("a", trajectories(3, 4))
    assert data.key == TrajectorySet("b", trajectories(3, 4), {"file": "x"}).key
    other, (first, second) = trajectories(3, 4), trajectories(3, 4)
    other[1].rewards[2] += 1
    joined = [Trajectory(*map(np.concatenate, zip(vars(first).values(), vars(second).values(), strict=True)))]
    assert len({data.key, TrajectorySet("a", other).key, TrajectorySet("a", joined).key}) == 3
    assert (data.obs_dim, data.action_dim, data.decisions) == (OBS, ACTIONS, 7)


def spoil(**changes):
    data = trajectories(4, 5)
    for name, change in changes.items():
        setattr(data[1], name, change(getattr(data[1], name)))
    return data


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "holds no trajectory"),
        (spoil(obs=lambda x: x * np.nan), "trajectory 1 of bad holds values that are not finite"),
        (spoil(rewards=lambda x: x + np.inf), "not finite"),
        (spoil(rewards=lambda x: x[:-1]), "has 5 observations, 5 actions and 4 rewards"),
        (spoil(rewards=lambda x: x[:, None]), r"has shapes \(5, 5\), \(5, 2\), \(5, 1\)"),
        (spoil(obs=lambda x: x[:0], actions=lambda x: x[:0], rewards=lambda x: x[:0]), "has shapes"),
        (spoil(actions=lambda x: 3 * x), "has an action of 2[.].*rescale"),
        (spoil(obs=lambda x: x[:, :3]), r"have \[\(3, 2\), \(5, 2\)\] observations and actions"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(data, sentence):
    with pytest.raises(OfflineDataError, match=sentence):
        TrajectorySet("bad", data)


# ---------------------------------------------------------------------------------------------------------- D4RL


def flat(data, ends, **changes):
    """D4RL's columns; `ends` has the kind of end of each trajectory: terminals, timeouts, or none (the file ends)."""
    columns = {name: np.concatenate([getattr(t, attribute) for t in data])
               for name, attribute in zip(COLUMNS, ("obs", "actions", "rewards"), strict=True)}  # fmt: skip
    last = np.cumsum([len(t) for t in data]) - 1
    for kind in ("terminals", "timeouts"):
        columns[kind] = np.zeros(len(columns["rewards"]), bool)
        columns[kind][[row for row, end in zip(last, ends, strict=True) if end == kind]] = True
    return columns | changes


def write(path, columns):
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            if column is not None:
                file[name] = column
    return path


def test_a_d4rl_file_is_cut_where_episodes_end(tmp_path, capsys):
    data = trajectories(4, 1, 6, 3)
    path = write(tmp_path / "a.hdf5", flat(data, ["terminals", "timeouts", "terminals", "none"]))
    assert equal(read_hdf5(path), data[:3])  # what was going on when the file ended has no known return
    assert equal(load_dataset(str(path)).trajectories, data[:3])
    line = f"{path}: the last 3 of 14 decisions are left out, as their episode has no end; 3 whole episodes remain\n"
    assert line in capsys.readouterr().err
    doubles = {k: v.astype(np.float64) for k, v in flat(data, ["timeouts"] * 4).items()}
    assert equal(read_hdf5(write(tmp_path / "b.hdf5", doubles)), data)
    assert not capsys.readouterr().err


def test_without_timeouts_an_episode_ends_after_a_thousand_decisions(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.study.sequence.d4rl.LONGEST", 6)
    data = trajectories(4, 6, 6, 2)
    columns = flat(data, ["terminals", "none", "none", "terminals"], timeouts=None)
    assert equal(read_hdf5(write(tmp_path / "a.h5", columns)), data)


# ------------------------------------------------------------------------------------------------------- pickles


def episodes(data, **changes):
    content = [dict(zip(COLUMNS, vars(t).values(), strict=True)) for t in data]
    return [episode | {"terminals": np.zeros(len(t), bool)} | changes for episode, t in zip(content, data, strict=True)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_list_is_read_as_pickle_reads_it(tmp_path, protocol):
    data = trajectories(3, 8)
    content = episodes(data)
    for number, change in enumerate((np.asfortranarray, lambda x: x.astype(">f8"), lambda x: x[::-1].copy()[::-1])):
        content.append({k: change(v) for k, v in content[number % 2].items()})
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    trusted = pickle.loads(path.read_bytes())
    wanted = [Trajectory(*(np.asarray(e[name], dtype=np.float32) for name in COLUMNS)) for e in trusted]
    assert equal(read_pickle(path), wanted) and equal(read_pickle(path)[:2], data)
    assert equal(load_dataset(str(path)).trajectories, wanted)


def test_names_of_older_numpy_are_known(tmp_path):
    data, path = trajectories(3), tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps(episodes(data), 2).replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core.multiarray" in path.read_bytes() and equal(read_pickle(path), data)


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, protocol):
    path, marker = tmp_path / "hostile.pkl", tmp_path / "was run"
    touch = Runs(os.system, f"touch '{marker}'")
    for what, content in {
        "call": touch,
        "in an episode": episodes(trajectories(3), note=touch),
        "in an array of objects": episodes(trajectories(3), rewards=np.array([touch, 1], dtype=object)),
        "eval": Runs(eval, f"open({str(marker)!r}, 'w')"),
        "getattr": Runs(getattr, "text", "upper"),
        "a loader": Runs(np.load, "file.npy"),
        "a class of ours": some(3),
    }.items():
        path.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(OfflineDataError, match="hostile.pkl is not a whole pickle of numpy arrays"):
            load_dataset(str(path))
        assert not marker.exists(), what


# ------------------------------------------------------------------------------------------ files that are of no use

NINE = flat(trajectories(4, 5), ["terminals"] * 2)  # columns of nine decisions


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("bad.hdf5", NINE | {"rewards": None}, "has no array 'rewards'"),
        ("bad.hdf5", NINE | {"terminals": None}, "has no array 'terminals'"),
        ("bad.hdf5", NINE | {"rewards": np.zeros(3)}, "is cut short"),
        ("bad.hdf5", NINE | {"observations": np.float32(1)}, "is cut short"),
        ("bad.hdf5", NINE | {"actions": np.array([b"rm -rf"] * 9)}, "'actions' is no array of numbers"),
        ("bad.hdf5", NINE | {"observations": np.full((9, OBS), np.nan)}, "not finite"),
        ("bad.hdf5", NINE | {"actions": np.full((9, ACTIONS), 2.0)}, "rescale its actions"),
        ("bad.hdf5", NINE | {"terminals": np.zeros(9, bool)}, "none of its 9 decisions ends an episode"),
        ("bad.hdf5", NINE | {"observations": np.zeros(9)}, r"has shapes \(4,\)"),
        ("bad.pkl", Runs(os.system, "true"), r"it asks for (posix|nt)\.system, which was not run"),
        ("bad.pkl", {"observations": 1}, "holds no list of episodes"),
        ("bad.pkl", [1, 2], "holds no list of episodes"),
        ("bad.pkl", [{"observations": np.zeros((3, 2))}], "episode 0 has no array 'actions'"),
        ("bad.pkl", episodes(trajectories(3), rewards=[1.0, 2.0, 3.0]), "has no array 'rewards'"),
        ("bad.pkl", episodes(trajectories(3), rewards=np.float32(1)), "has no array 'rewards'"),
        ("bad.pkl", episodes(trajectories(3), rewards=np.array([1.0, np.nan, 0.0])), "not finite"),
        ("bad.pkl", episodes(trajectories(3), rewards=np.array(["a", "b", "c"])), "array of type 'U1'"),
        ("bad.pkl", [], "holds no trajectory"),
    ],
)
def test_a_malformed_file_is_refused_in_a_sentence(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(content)) if path.suffix == ".pkl" else write(path, content)
    with pytest.raises(OfflineDataError, match=f"{name}.*{sentence}"):
        load_dataset(str(path))


def test_a_file_that_is_cut_short_or_of_something_else_is_refused(tmp_path):
    hdf5 = write(tmp_path / "whole.hdf5", flat(trajectories(40, 50), ["terminals"] * 2)).read_bytes()
    pickled = pickle.dumps(episodes(trajectories(30)))
    for name, what, contents in (
        ("bad.hdf5", "whole HDF5 file", [b"", b"not a file of numbers", hdf5[: len(hdf5) // 2]]),
        ("bad.pkl", "whole pickle", [b"", b"hello", pickled[:200], pickled[: len(pickled) // 2], pickled[:-3]]),
        ("bad.safetensors", "file of episodes", [b"nothing"]),
    ):
        for content in contents:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(OfflineDataError, match=f"{name} is not a {what}"):
                load_dataset(str(tmp_path / name))
    with pytest.raises(OfflineDataError, match="there is no file .*none.hdf5"):
        load_dataset(str(tmp_path / "none.hdf5"))


# -------------------------------------------------------------------------------------- our own files, and Minari


class SpacedEnv(TinyEnv, gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)


def whole(data):
    """Episodes as they are recorded: with the observation at their end; those of fewer than six steps terminated."""
    ends = [np.concatenate([t.obs, t.obs[-1:] + 1]) for t in data]
    return [Episode(obs, t.actions, t.rewards, len(t.rewards) < 6) for obs, t in zip(ends, data, strict=True)]


CARD = {"note": "for tests", "kind": "expert"}
CURVE = {100: 50.0, 200: 380.0, 300: 700.0, 400: 800.0}  # the teacher's return after so many decisions of training


def minari_of(data, name="tiny/a-v0", card=CARD):
    return write_minari(name, whole(data), "walker-walk", card)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Folders of its own, with a tiny teacher, its curve and three of its snapshots; an environment without physics."""
    for name in ("CACHE", "TEACHERS", "DATA"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    made = type("NotedEnv", (fresh_env(), SpacedEnv), {})
    for module in (teacher_episodes, datasets):
        monkeypatch.setattr(module, "make_env", made)
    (paths.TEACHERS / str(CELL)).mkdir(parents=True)
    for seed, name in enumerate((f"{CELL}/100", f"{CELL}/200", f"{CELL}/300", str(CELL))):
        save_world_model(tiny_model(seed=seed), paths.TEACHERS / f"{name}.safetensors")
    write_table(paths.TEACHERS / f"{CELL}.csv", [{"decision": d, "return": r} for d, r in CURVE.items()])
    return made


def test_our_own_episodes_are_read(tmp_path):
    data = trajectories(3, 4)
    save_episodes(tmp_path / "replay.safetensors", whole(data))
    assert equal(load_dataset(str(tmp_path / "replay.safetensors")).trajectories, data)


def test_minari_gives_back_what_was_written_and_minari_itself_can_read_it(home, monkeypatch):
    data, name = trajectories(6, 4, 6), "tdmpc2/tiny/expert-3-v0"
    folder = minari_of(data, name)
    assert folder == paths.CACHE / "minari" / name
    for given in (folder, folder / "data"):
        found = load_dataset(str(given))
        assert equal(found.trajectories, data) and found.about["card"] == CARD and found.name == name
    assert equal(load_dataset(name).trajectories, data)  # by its id, without a network
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(paths.CACHE / "minari"))
    theirs = minari.load_dataset(name)
    assert theirs.total_steps == 16 and list(minari.list_local_datasets()) == [name]
    ends = [(e.terminations.tolist(), e.truncations.tolist()) for e in theirs]
    assert ends[1] == ([False] * 3 + [True], [False] * 4)  # ended early
    assert ends[0] == ([False] * 6, [False] * 5 + [True])
    spec = theirs.env_spec
    assert spec.entry_point == "lib.environments:make_env" and spec.kwargs == {"task": "walker-walk"}


def test_a_minari_dataset_is_replaced_whole(home):
    for lengths in ((6, 6), (6, 5, 4)):
        data = trajectories(*lengths)
        folder = minari_of(data)
        assert equal(read_minari(folder).trajectories, data)
    with pytest.raises(TypeError):  # a card that JSON cannot hold: nothing changes
        minari_of(trajectories(6), card=CARD | {"bad": object()})
    assert equal(read_minari(folder).trajectories, data) and [p.name for p in folder.parent.iterdir()] == ["a-v0"]


def test_a_malformed_minari_folder_is_refused_in_a_sentence(home, tmp_path):
    folder = minari_of(trajectories(6, 6))
    file, metadata = folder / "data" / "main_data.hdf5", folder / "data" / "metadata.json"
    whole_file, whole_metadata = file.read_bytes(), metadata.read_text()

    def told(**changes):
        metadata.write_text(json.dumps(json.loads(whole_metadata) | changes))

    def episode(change):
        with h5py.File(file, "a") as opened:
            change(opened["episode_1"])

    for spoil, sentence in (
        (lambda: file.write_bytes(whole_file[:1000]), "a-v0 is no Minari dataset that can be read"),
        (lambda: metadata.write_text("{"), "is no Minari dataset that can be read"),
        (lambda: told(minari_version="9.9.9"), "does not support the dataset generated by Minari 9.9.9"),
        (lambda: episode(lambda e: e["rewards"].__setitem__(2, np.nan)), "not finite"),
        (lambda: episode(lambda e: e["observations"].resize(5, axis=0)), "episode 1 .* 5 observations and 6 actions"),
        (lambda: episode(lambda e: e.__delitem__("actions")), "is no Minari dataset"),
        (lambda: told(total_episodes=0), "holds no trajectory"),
    ):
        spoil()
        with pytest.raises(OfflineDataError, match=sentence):
            read_minari(folder)
        file.write_bytes(whole_file)
        metadata.write_text(whole_metadata)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OfflineDataError, match="empty is no Minari dataset that can be read: No data found"):
        load_dataset(str(tmp_path / "empty"))


class ConnectError(Exception):
    """Named as those of the packages that Minari downloads with."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectError("[Errno -2] Name or service not known"), r"no server can be reached \(ConnectError\)"),
        (ValueError("Couldn't find any version\nanywhere."), "cannot be downloaded: Couldn't find any version"),
    ],
    ids=["without a connection", "of no such dataset"],
)
def test_a_failed_download_is_one_clear_sentence(home, monkeypatch, error, sentence):
    def download(name, force_download):
        assert os.environ["MINARI_DATASETS_PATH"].startswith(str(paths.CACHE))  # not the user's home
        raise error

    monkeypatch.setattr(minari, "download_dataset", download)
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    wanted = f"mujoco/hopper/medium-v0 is not in .*{sentence}; give a local .* such as expert"
    with pytest.raises(OfflineDataError, match=wanted) as raised:
        load_dataset("mujoco/hopper/medium-v0")
    assert "\n" not in str(raised.value) and "MINARI_DATASETS_PATH" not in os.environ


def test_a_download_counts_once_it_is_whole(home, monkeypatch):
    """The first breaks off half-way; the second goes on. Nothing is asked for when the dataset is there."""
    data, calls = trajectories(6, 6), []

    def download(name, force_download):
        calls.append(name)
        target = Path(os.environ["MINARI_DATASETS_PATH"], name, "data")
        target.mkdir(parents=True, exist_ok=True)
        if len(calls) == 1:
            raise TimeoutError
        made = minari_of(data, "tiny/other-v0")
        target.rmdir()
        (made / "data").rename(target)

    monkeypatch.setattr(minari, "download_dataset", download)
    with pytest.raises(OfflineDataError, match="no server can be reached"):
        load_dataset("far/away-v3")
    for _ in range(2):
        assert equal(load_dataset("far/away-v3").trajectories, data)
    assert calls == ["far/away-v3"] * 2


@pytest.mark.parametrize("name", ["experts", "hopper", "mujoco/hopper/expert", "", "x" * 5000 + "-v0"])
def test_a_dataset_that_is_not_known_is_an_error_that_lists_the_forms(name):
    with pytest.raises(ConfigError, match="is not known; use one of expert, medium, .*Minari id.*hdf5"):
        load_dataset(name)


def test_results_are_named_after_the_dataset(tmp_path):
    assert dataset_label("expert", Cell("walker-walk", "1m", 1)) == "1m-1-expert"
    assert dataset_label("mixed", Cell.of_teacher("official/dog-run-1", "dog-run", 1)) == "official-dog-run-1-mixed"
    assert dataset_label("mujoco/hopper/medium-v0", CELL) == "mujoco-hopper-medium-v0"
    (tmp_path / "hopper_medium-v2.hdf5").touch()
    assert dataset_label(str(tmp_path / "hopper_medium-v2.hdf5"), CELL) == "hopper_medium-v2"


# ------------------------------------------------------------------------------------------- made of the teachers


def test_each_kind_has_its_sources_and_start_states_of_its_own(home):
    assert snapshots(str(CELL)) == CURVE
    who = {kind: [(s.weights, s.exploration) for s in sources(kind, str(CELL))] for kind in KINDS}
    teacher, middle = (str(CELL), 0.0), (f"{CELL}/200", 0.0)  # 380 is nearest to half of 800
    assert who == {
        "expert": [teacher],
        "medium": [middle],
        "medium-replay": [("", 1.0), (f"{CELL}/100", 1.0), (f"{CELL}/200", 1.0)],
        "mixed": [teacher, middle],
    }
    seeds = {s: s.seed for kind in KINDS for s in sources(kind, str(CELL))}
    assert len(set(seeds.values())) == len(seeds) == 5 and min(np.diff(sorted(seeds.values()))) >= 5_000
    with pytest.raises(ConfigError, match="teacher elsewhere has no snapshots in .*use dataset=expert"):
        sources("medium", "elsewhere")


def test_recorded_episodes_are_not_played_again(home, monkeypatch):
    monkeypatch.setattr(teacher_episodes, "BLOCK", 2)
    (source,) = sources("expert", str(CELL))
    few, about = recorded(source, SETTINGS, CELL, 2)
    assert len(home.starts) == 2 and about["episodes"] == 2 and about["planner"]["samples"] == 16
    more, _ = recorded(source, SETTINGS, CELL, 4)
    assert len(home.starts) == 4  # two of the four were there
    assert all(np.array_equal(a.obs, b.obs) for a, b in zip(few, more, strict=False))
    recorded(dataclasses.replace(source, exploration=1.0), SETTINGS, CELL, 2)
    assert len(home.starts) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_of_every_kind_is_made_with_its_card(home, kind):
    found = load_dataset(kind, SETTINGS, CELL, episodes=4)
    card = found.about["card"]
    assert len(found.trajectories) == card["episodes"] == 4 and card["decisions"] == found.decisions == 24
    assert [s["episodes"] for s in card["sources"]] == {"mixed": [2, 2], "medium-replay": [2, 1, 1]}.get(kind, [4])
    extremes = found.returns.min(), found.returns.max()
    assert (card["return_min"], card["return_max"]) == pytest.approx(extremes, rel=1e-5)
    assert card["return_mean"] == pytest.approx(found.returns.mean(), rel=1e-5) and "right-sized" in card["note"]
    starts = len(home.starts)
    assert load_dataset(kind, SETTINGS, CELL, episodes=4).key == found.key and len(home.starts) == starts


def test_a_dataset_needs_an_episode_of_each_source(home):
    with pytest.raises(ConfigError, match="medium-replay has 3 sources, but 2 episodes were asked for"):
        load_dataset("medium-replay", SETTINGS, CELL, episodes=2)
