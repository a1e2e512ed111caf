"""Offline data: windows against a slow twin, files of others that are cut, refused or read, and datasets made here."""

import dataclasses
import json
import os
import pickle

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
from lib.study.sequence.datasets import (
    dataset_label,
    load_dataset,
    minari_folder,
    read_minari,
    teacher_dataset,
    write_minari,
)
from lib.study.sequence.teacher_episodes import (
    KINDS,
    recorded,
    snapshots,
    sources,
)
from lib.study.sequence.windows import OfflineDataError, Trajectory, TrajectorySet, Windows
from lib.teachers.replay import Episode, save_episodes
from lib.weights.native import save_world_model
from tests.tiny import ACTIONS, BUDGET, OBS, TinyEnv, fresh_env, tiny_model

CELL = Cell("tiny-task", "1m", 1)


def trajectory(length, seed=0):
    random = np.random.default_rng([length, seed])
    actions = random.uniform(-1, 1, (length, ACTIONS))
    return Trajectory(
        *(x.astype(np.float32) for x in (random.normal(size=(length, OBS)), actions, random.normal(size=length)))
    )


def trajectories(*lengths):
    return [trajectory(n, i) for i, n in enumerate(lengths)]


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
    windows, row = Windows(data, context), 0
    assert len(windows) == 22
    batch = windows.starting_at(np.arange(22))
    for t in data:
        for start in range(len(t)):
            for k in range(context):
                at = start + k
                values = [getattr(batch, name)[row, k].numpy() for name in vars(batch)]
                if at < len(t):
                    wanted = (t.obs[at], t.actions[at], np.float32(sum(float(r) for r in t.rewards[at:])), at, True)
                else:
                    wanted = (np.zeros(OBS), np.zeros(ACTIONS), 0, 0, False)
                for value, want in zip(values, wanted, strict=True):
                    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)
            row += 1


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


def test_covering_windows_hold_every_decision_once():
    data = trajectories(1, 7, 12, 4)
    batch = Windows(data, 4).starting_at(Windows(data, 4).covering())
    assert batch.mask.sum() == 24
    np.testing.assert_array_equal(batch.obs[batch.mask].numpy(), np.concatenate([t.obs for t in data]))


@pytest.mark.parametrize("seed", range(4))
def test_a_trajectory_is_never_on_both_sides(seed):
    for n in (2, 3, 10, 25):
        data = TrajectorySet("some", trajectories(*range(1, n + 1)))
        sides = [[len(t) for t in side.trajectories] for side in data.split(0.1, seed)]
        assert sorted(sides[0] + sides[1]) == list(range(1, n + 1)) and len(sides[1]) == max(round(0.1 * n), 1)
    with pytest.raises(OfflineDataError, match="some holds one trajectory; two are needed"):
        TrajectorySet("some", trajectories(5)).split()


def test_the_key_follows_what_can_be_learnt():
    data = TrajectorySet("a", trajectories(3, 4))
    assert data.key == TrajectorySet("b", trajectories(3, 4), {"file": "x"}).key
    other = trajectories(3, 4)
    other[1].rewards[2] += 1
    joined = [
        Trajectory(*(np.concatenate(x) for x in zip(*(vars(t).values() for t in trajectories(3, 4)), strict=True)))
    ]
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


def test_a_d4rl_file_is_cut_where_episodes_end(tmp_path):
    data = trajectories(4, 1, 6, 3)
    path = write(tmp_path / "a.hdf5", flat(data, ["terminals", "timeouts", "terminals", "none"]))
    assert equal(read_hdf5(path), data[:3])  # what was going on when the file ended has no known return
    assert equal(load_dataset(str(path)).trajectories, data[:3])
    doubles = {k: v.astype(np.float64) for k, v in flat(data, ["timeouts"] * 4).items()}
    assert equal(read_hdf5(write(tmp_path / "b.hdf5", doubles)), data)


def test_without_timeouts_an_episode_ends_after_a_thousand_decisions(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.study.sequence.d4rl.LONGEST", 6)
    data = trajectories(4, 6, 6, 2)
    columns = flat(data, ["terminals", "none", "none", "terminals"], timeouts=None)
    assert equal(read_hdf5(write(tmp_path / "a.h5", columns)), data)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rewards": None}, "has no array 'rewards'"),
        ({"terminals": None}, "has no array 'terminals'"),
        ({"rewards": np.zeros(3)}, "is cut short"),
        ({"observations": np.float32(1)}, "is cut short"),
        ({"actions": np.array([b"rm -rf"] * 9)}, "'actions' is no array of numbers"),
        ({"observations": np.full((9, OBS), np.nan)}, "not finite"),
        ({"actions": np.full((9, ACTIONS), 2.0)}, "rescale its actions"),
        ({"terminals": np.zeros(9, bool)}, "holds no trajectory"),
        ({"observations": np.zeros(9)}, r"has shapes \(4,\)"),
    ],
)
def test_a_malformed_d4rl_file_is_refused_in_a_sentence(tmp_path, changes, sentence):
    path = write(tmp_path / "bad.hdf5", flat(trajectories(4, 5), ["terminals"] * 2, **changes))
    with pytest.raises(OfflineDataError, match=f"bad.hdf5.*{sentence}|trajectory . of bad.hdf5.*{sentence}"):
        load_dataset(str(path))


def test_a_file_that_is_no_hdf5_or_cut_short_is_refused(tmp_path):
    whole = write(tmp_path / "whole.hdf5", flat(trajectories(40, 50), ["terminals"] * 2)).read_bytes()
    for content in (b"", b"not a file of numbers", whole[: len(whole) // 2]):
        (tmp_path / "bad.hdf5").write_bytes(content)
        with pytest.raises(OfflineDataError, match="bad.hdf5 is not a whole HDF5 file"):
            read_hdf5(tmp_path / "bad.hdf5")
    with pytest.raises(OfflineDataError, match="there is no file .*none.hdf5"):
        load_dataset(str(tmp_path / "none.hdf5"))


# ------------------------------------------------------------------------------------------------------- pickles


def episodes(data, **changes):
    return [
        dict(zip(COLUMNS, vars(t).values(), strict=True)) | {"terminals": np.zeros(len(t), bool)} | changes
        for t in data
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_list_is_read_as_pickle_reads_it(tmp_path, protocol):
    data = trajectories(3, 8)
    content = episodes(data)
    for number, change in enumerate((np.asfortranarray, lambda x: x.astype(">f8"), lambda x: x[::-1].copy()[::-1])):
        content.append({k: change(v) for k, v in content[number % 2].items()})
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    with open(path, "rb") as file:
        trusted = pickle.load(file)
    wanted = [Trajectory(*(np.asarray(e[name], dtype=np.float32) for name in COLUMNS)) for e in trusted]
    assert equal(read_pickle(path), wanted) and equal(read_pickle(path)[:2], data)
    assert equal(load_dataset(str(path)).trajectories, wanted)


def test_names_of_older_numpy_are_known(tmp_path):
    data = trajectories(3)
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps(episodes(data), 2).replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core.multiarray" in path.read_bytes() and equal(read_pickle(path), data)


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(tmp_path):
    marker = tmp_path / "was run"
    touch = Runs(os.system, f"touch '{marker}'")
    objects = np.array([touch, 1], dtype=object)
    return marker, {
        "call": touch,
        "in an episode": episodes(trajectories(3), note=touch),
        "in an array of objects": episodes(trajectories(3), rewards=objects),
        "eval": Runs(eval, f"open({str(marker)!r}, 'w')"),
        "getattr": Runs(getattr, "text", "upper"),
        "a loader": Runs(np.load, "file.npy"),
        "a class of ours": TrajectorySet("x", trajectories(3)),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, protocol):
    marker, contents = hostile(tmp_path)
    for what, content in contents.items():
        path = tmp_path / "hostile.pkl"
        path.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(OfflineDataError, match="hostile.pkl is not a whole pickle of numpy arrays"):
            load_dataset(str(path))
        assert not marker.exists(), what


def test_the_sentence_names_what_a_pickle_asked_for(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Runs(os.system, "true")))
    with pytest.raises(OfflineDataError, match=r"it asks for (posix|nt)\.system, which was not run"):
        read_pickle(tmp_path / "bad.pkl")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"observations": 1}, "holds no list of episodes"),
        ([1, 2], "holds no list of episodes"),
        ([{"observations": np.zeros((3, 2))}], "episode 0 has no array 'actions'"),
        (episodes(trajectories(3), rewards=[1.0, 2.0, 3.0]), "has no array 'rewards'"),
        (episodes(trajectories(3), rewards=np.float32(1)), "has no array 'rewards'"),
        (episodes(trajectories(3), rewards=np.array([1.0, np.nan, 0.0])), "not finite"),
        (episodes(trajectories(3), rewards=np.array(["a", "b", "c"])), "array of type 'U1'"),
        ([], "holds no trajectory"),
    ],
)
def test_a_malformed_pickle_is_refused_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(OfflineDataError, match=sentence):
        load_dataset(str(path))


def test_a_pickle_that_is_cut_short_is_refused(tmp_path):
    whole = pickle.dumps(episodes(trajectories(30)))
    for content in (b"", b"hello", whole[:200], whole[: len(whole) // 2], whole[:-3]):
        (tmp_path / "bad.pkl").write_bytes(content)
        with pytest.raises(OfflineDataError, match="bad.pkl is not a whole pickle"):
            read_pickle(tmp_path / "bad.pkl")


# -------------------------------------------------------------------------------------- our own files, and Minari


class SpacedEnv(TinyEnv, gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)


def whole(t: Trajectory) -> Episode:
    return Episode(np.concatenate([t.obs, t.obs[-1:] + 1]), t.actions, t.rewards)


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
    curve = [(100, 50.0), (200, 380.0), (300, 700.0), (400, 800.0)]
    for seed, (decisions, _) in enumerate(curve):
        at = f"{CELL}" if decisions == 400 else f"{CELL}/{decisions}"
        save_world_model(tiny_model(seed=seed), paths.TEACHERS / f"{at}.safetensors")
    write_table(paths.TEACHERS / f"{CELL}.csv", [{"decision": d, "return": r} for d, r in curve])
    return made


def settings(**changes):
    profile = dataclasses.replace(PROFILES["smoke"], planner=BUDGET, decisions=6, **changes)
    return Settings(profile, (CELL,), "", "cpu")


def test_our_own_episodes_are_read(tmp_path):
    data = trajectories(3, 4)
    save_episodes(tmp_path / "replay.safetensors", [whole(t) for t in data])
    assert equal(load_dataset(str(tmp_path / "replay.safetensors")).trajectories, data)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(OfflineDataError, match="bad.safetensors is not a file of episodes"):
        load_dataset(str(tmp_path / "bad.safetensors"))


CARD = {"note": "for tests", "kind": "expert"}


def test_minari_gives_back_what_was_written_and_minari_itself_can_read_it(home, monkeypatch):
    data = trajectories(6, 4, 6)
    folder = write_minari("tdmpc2/tiny/expert-3-v0", [whole(t) for t in data], "walker-walk", CARD, decisions=6)
    assert folder == paths.CACHE / "minari" / "tdmpc2" / "tiny" / "expert-3-v0"
    for given in (folder, folder / "data"):
        found = load_dataset(str(given))
        assert (
            equal(found.trajectories, data) and found.about["card"] == CARD and found.name == "tdmpc2/tiny/expert-3-v0"
        )
    assert equal(load_dataset("tdmpc2/tiny/expert-3-v0").trajectories, data)  # by its id, without a network
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(paths.CACHE / "minari"))
    theirs = minari.load_dataset("tdmpc2/tiny/expert-3-v0")
    assert theirs.total_steps == 16 and list(minari.list_local_datasets()) == ["tdmpc2/tiny/expert-3-v0"]
    ends = [(e.terminations.tolist(), e.truncations.tolist()) for e in theirs]
    assert ends[1] == ([False] * 3 + [True], [False] * 4)  # ended early
    assert ends[0] == ([False] * 6, [False] * 5 + [True])
    assert theirs.env_spec.entry_point == "lib.environments:make_env" and theirs.env_spec.kwargs == {
        "task": "walker-walk"
    }


def test_a_minari_dataset_is_replaced_whole(home):
    for lengths in ((6, 6), (6, 5, 4)):
        data = trajectories(*lengths)
        folder = write_minari("tiny/a-v0", [whole(t) for t in data], "walker-walk", CARD, 6)
        assert equal(read_minari(folder).trajectories, data)
    with pytest.raises(TypeError):  # a card that JSON cannot hold: nothing changes
        write_minari("tiny/a-v0", [whole(trajectory(6))], "walker-walk", CARD | {"bad": object()}, 6)
    assert equal(read_minari(folder).trajectories, data) and [p.name for p in folder.parent.iterdir()] == ["a-v0"]


def test_a_malformed_minari_folder_is_refused_in_a_sentence(home, tmp_path):
    folder = write_minari("tiny/a-v0", [whole(t) for t in trajectories(6, 6)], "walker-walk", CARD, 6)
    file, metadata = folder / "data" / "main_data.hdf5", folder / "data" / "metadata.json"
    whole_file, whole_metadata = file.read_bytes(), metadata.read_text()

    def refused(sentence):
        with pytest.raises(OfflineDataError, match=sentence):
            read_minari(folder)
        file.write_bytes(whole_file)
        metadata.write_text(whole_metadata)

    file.write_bytes(whole_file[:1000])
    refused("a-v0 is no Minari dataset that can be read")
    metadata.write_text("{")
    refused("is no Minari dataset that can be read")
    metadata.write_text(json.dumps(json.loads(whole_metadata) | {"minari_version": "9.9.9"}))
    refused("does not support the dataset generated by Minari 9.9.9")
    for change, sentence in (
        (lambda e: e["rewards"].__setitem__(2, np.nan), "not finite"),
        (lambda e: e["observations"].resize(5, axis=0), "episode 1 .* has 5 observations and 6 actions"),
        (lambda e: e.__delitem__("actions"), "is no Minari dataset"),
    ):
        with h5py.File(file, "a") as opened:
            change(opened["episode_1"])
        refused(sentence)
    metadata.write_text(json.dumps(json.loads(whole_metadata) | {"total_episodes": 0}))
    refused("holds no trajectory")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OfflineDataError, match="empty is no Minari dataset that can be read: No data found"):
        load_dataset(str(tmp_path / "empty"))


def test_without_a_connection_a_download_is_one_clear_sentence(home, monkeypatch):
    class ConnectError(Exception):
        pass

    def download(name, force_download):
        assert os.environ["MINARI_DATASETS_PATH"].startswith(str(paths.CACHE))  # not the user's home
        raise ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(minari, "download_dataset", download)
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    with pytest.raises(OfflineDataError) as error:
        load_dataset("mujoco/hopper/medium-v0")
    sentence = str(error.value)
    assert "mujoco/hopper/medium-v0 is not in" in sentence and "no server can be reached (ConnectError)" in sentence
    assert "such as expert" in sentence and "\n" not in sentence and "MINARI_DATASETS_PATH" not in os.environ


def test_what_minari_says_of_an_unknown_dataset_is_handed_on(home, monkeypatch):
    def download(name, force_download):
        raise ValueError("Couldn't find any version for dataset mujoco/hoper/x in the remote Farama server.")

    monkeypatch.setattr(minari, "download_dataset", download)
    with pytest.raises(
        OfflineDataError, match="cannot be downloaded: Couldn't find any version .* server; give a local"
    ):
        minari_folder("mujoco/hoper/x-v0")


def test_a_download_counts_once_it_is_whole(home, monkeypatch):
    """The first breaks off half-way; the second goes on. Nothing is asked for when the dataset is there."""
    data, calls = trajectories(6, 6), []

    def download(name, force_download):
        calls.append(name)
        target = os.path.join(os.environ["MINARI_DATASETS_PATH"], name)
        os.makedirs(os.path.join(target, "data"), exist_ok=True)
        if len(calls) == 1:
            raise TimeoutError
        made = write_minari("tiny/other-v0", [whole(t) for t in data], "walker-walk", CARD, 6)
        os.rmdir(os.path.join(target, "data"))
        os.rename(made / "data", os.path.join(target, "data"))

    monkeypatch.setattr(minari, "download_dataset", download)
    with pytest.raises(OfflineDataError, match="no server can be reached"):
        load_dataset("far/away-v3")
    for _ in range(2):
        assert equal(load_dataset("far/away-v3").trajectories, data)
    assert calls == ["far/away-v3"] * 2


def test_a_dataset_that_is_not_known_is_an_error_that_lists_the_forms(tmp_path):
    for name in ("experts", "", "hopper", "mujoco/hopper/expert"):
        with (
            pytest.raises(ConfigError, match="is not known; use one of expert, medium, .*Minari id.*hdf5")
            if name
            else (pytest.raises(OfflineDataError))
        ):
            load_dataset(name)


def test_results_are_named_after_the_dataset(tmp_path):
    assert dataset_label("expert", Cell("walker-walk", "1m", 1)) == "1m-1-expert"
    assert dataset_label("mixed", Cell.of_teacher("official/dog-run-1", "dog-run", 1)) == "official-dog-run-1-mixed"
    assert dataset_label("mujoco/hopper/medium-v0", CELL) == "mujoco-hopper-medium-v0"
    (tmp_path / "hopper_medium-v2.hdf5").touch()
    assert dataset_label(str(tmp_path / "hopper_medium-v2.hdf5"), CELL) == "hopper_medium-v2"


# ------------------------------------------------------------------------------------------- made of the teachers


def test_each_kind_has_its_sources_and_start_states_of_its_own(home):
    assert snapshots(str(CELL)) == {100: 50.0, 200: 380.0, 300: 700.0, 400: 800.0}
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
    few, about = recorded(source, settings(), CELL, 2)
    assert len(home.starts) == 2 and about["episodes"] == 2 and about["planner"]["samples"] == 16
    more, _ = recorded(source, settings(), CELL, 4)
    assert len(home.starts) == 4  # two of the four were there
    assert all(np.array_equal(a.obs, b.obs) for a, b in zip(few, more, strict=False))
    recorded(dataclasses.replace(source, exploration=1.0), settings(), CELL, 2)
    assert len(home.starts) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_of_every_kind_is_made_with_its_card(home, kind):
    found = load_dataset(kind, settings(), CELL, episodes=4)
    card = found.about["card"]
    assert len(found.trajectories) == card["episodes"] == 4 and card["decisions"] == found.decisions == 24
    assert [s["episodes"] for s in card["sources"]] == {"mixed": [2, 2], "medium-replay": [2, 1, 1]}.get(kind, [4])
    assert (card["return_min"], card["return_max"]) == pytest.approx(
        (found.returns.min(), found.returns.max()), rel=1e-5
    )
    assert card["return_mean"] == pytest.approx(found.returns.mean(), rel=1e-5) and "right-sized" in card["note"]
    starts = len(home.starts)
    assert load_dataset(kind, settings(), CELL, episodes=4).key == found.key and len(home.starts) == starts


def test_a_dataset_needs_an_episode_of_each_source(home):
    with pytest.raises(ConfigError, match="medium-replay has 3 sources, but 2 episodes were asked for"):
        teacher_dataset(settings(), CELL, "medium-replay", 2)
