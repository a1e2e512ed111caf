"""The distillation set: bookkeeping of its rows, histories, the floor, and its files."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib.distil.states import COLUMNS, ROWS, DistillationError, DistillationSet
from tests.distil.sets import H, printed_by, set_of
from tests.tiny import ACTIONS, LATENT


def random_set(n=40, twice=13, seed=0, latent_dim=LATENT, first_episode=0):
    """Row i is marked: its label is i in both dimensions, the second solve of it i + 0.5."""
    mark = torch.arange(n, dtype=torch.float32)[:, None].expand(n, ACTIONS).contiguous()
    again = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:twice].sort().values
    labels = {"a_teacher": mark, "teacher_plan": mark.unsqueeze(1) + torch.arange(H).view(1, -1, 1)}
    labels |= {"again_index": again, "a_again": mark[again] + 0.5}
    place = {"episode": torch.arange(n) % 4 + first_episode, "source": torch.full((n,), seed % 2)}
    about = {"task": "tiny", "teacher_key": "abc", "source": str(seed)}
    data = set_of(n, seed, **labels, **place, about=about)
    data.z_real, data.z_pred = (z.repeat(1, latent_dim // LATENT) for z in (data.z_real, data.z_pred))
    return data


def assert_consistent(data):
    """Every second solve still belongs to the row that was solved twice."""
    assert data.again_index.shape == (len(data.a_again),) and (data.again_index < len(data)).all()
    assert torch.equal(data.a_again, data.a_teacher[data.again_index] + 0.5)
    assert all(len(getattr(data, k)) == len(data) for k in ROWS)


def equal(a, b):
    pairs = zip(a.columns().values(), b.columns().values(), strict=True)
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


# ------------------------------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize("seed", range(20))
def test_choosing_rows_keeps_second_solves_with_their_rows(seed):
    data = random_set(seed=seed)
    keep = torch.rand(len(data), generator=torch.Generator().manual_seed(seed)) < seed / 19
    part = data.rows(keep)
    assert_consistent(part)
    kept = keep.nonzero().flatten()
    assert torch.equal(part.a_teacher[:, 0].long(), kept) and part.about == data.about
    assert all(torch.equal(getattr(part, k), getattr(data, k)[kept]) for k in ROWS)
    assert set(part.a_again[:, 0].int().tolist()) == set(data.again_index.tolist()) & set(kept.tolist())


@pytest.mark.parametrize("least", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("most", [0, 1, 3, 7, 1000])
def test_filtering_by_mismatch_and_number(least, most):
    data = random_set(n=50)
    part = data.filtered(least, most)
    assert_consistent(part)
    able = int((data.mismatch >= least).sum())
    assert len(part) == (min(able, most) if most else able) and part.mismatch.min() >= least
    if most and able > most > 1:  # spread over the whole collection, not its beginning
        allowed = (data.mismatch >= least).nonzero().flatten()
        assert part.decision[0] == allowed[0] and part.decision[-1] == allowed[-1]


def test_filtering_everything_away_is_an_error():
    with pytest.raises(DistillationError, match="no state has a mismatch of 2; the largest is 0.9"):
        random_set().filtered(2)


def test_the_floor_is_half_the_mean_squared_difference():
    data = random_set()
    assert data.floor_mse() == pytest.approx(0.5 * 0.5**2)
    data.again_index, data.a_again = torch.tensor([3, 5]), torch.tensor([[3.0, 5.0], [5.0, 4.0]])
    assert data.floor_mse() == pytest.approx(0.5 * (0 + 4 + 0 + 1) / 4)
    assert np.isnan(data.rows(data.a_teacher[:, 0] > 10).floor_mse())


def test_the_floor_is_what_knowing_the_mean_label_would_cost():
    g = torch.Generator().manual_seed(0)
    data = random_set(20_000, twice=20_000)
    data.a_teacher, data.a_again = (0.2 * torch.randn(20_000, ACTIONS, generator=g) for _ in range(2))
    assert data.floor_mse() == pytest.approx(data.a_teacher.square().mean().item(), rel=0.03)


# ------------------------------------------------------------------------------------------------------- histories


def plans(rows, seed=0):
    """A set of these (source, episode, decision, depth) rows."""
    data = random_set(len(rows), twice=0, seed=seed)
    data.source, data.episode, data.decision, data.depth = torch.tensor(rows).unbind(1)
    return data


def lockstep(source, episodes, decisions, horizon):
    """What a collection records: all rows move through their plans in step, depth 0 is not recorded."""
    return [(source, e, t, t % horizon) for t in range(decisions) if t % horizon for e in episodes]


def slow_history(data, length):
    """Follow each state back, one decision at a time, looking for the row that is its predecessor."""
    rows = list(zip(*(getattr(data, k).tolist() for k in ("source", "episode", "decision", "depth")), strict=True))
    table = []
    for row, (source, episode, decision, depth) in enumerate(rows):
        history = [row]
        for back in range(1, length):
            wanted = (source, episode, decision - back, depth - back)
            if depth - back < 1 or wanted not in rows:
                break
            history.insert(0, rows.index(wanted))
        table.append([-1] * (length - len(history)) + history)
    return table


@pytest.mark.parametrize("length", [1, 2, 4, 7])
@pytest.mark.parametrize("seed", range(4))
def test_histories_are_what_a_search_finds(length, seed):
    rows = lockstep(0, (7, 8), 14, 6) + lockstep(1, (7, 9), 14, 6) + lockstep(0, (20,), 9, 3)
    whole = plans(rows)
    assert whole.history_index(length).tolist() == slow_history(whole, length)
    g = torch.Generator().manual_seed(seed)
    part = whole.rows(torch.rand(len(whole), generator=g) < 0.75)  # gaps cut what is older
    assert part.history_index(length).tolist() == slow_history(part, length)
    shuffled = plans([rows[i] for i in torch.randperm(len(rows), generator=g).tolist()])
    assert shuffled.history_index(length).tolist() == slow_history(shuffled, length)


@pytest.mark.parametrize("seed", range(10))
def test_histories_of_rows_that_follow_in_part_only(seed):
    """Any depths at any decisions: rows may agree in all but the source, the episode, the decision or the depth."""
    g = torch.Generator().manual_seed(seed)
    places = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(8))  # source, episode, decision
    places = places[torch.randperm(len(places), generator=g)[:36]]
    data = plans(torch.cat([places, torch.randint(1, 4, (36, 1), generator=g)], 1).tolist())
    found = data.history_index(3)
    assert found.tolist() == slow_history(data, 3) and (found[:, 1] >= 0).any()


@pytest.mark.parametrize("column", range(4))
def test_rows_that_differ_in_one_thing_are_not_of_one_plan(column):
    other = [0, 1, 4, 4]
    assert plans([(0, 1, 3, 3), other]).history_index(2).tolist() == [[-1, 0], [0, 1]]
    other[column] += 1 if column < 2 else 2
    assert plans([(0, 1, 3, 3), other]).history_index(2).tolist() == [[-1, 0], [-1, 1]]


def test_a_history_by_hand():
    data = plans([(0, 1, 1, 1), (0, 2, 1, 1), (0, 1, 2, 2), (0, 2, 2, 2), (0, 1, 3, 3), (0, 1, 5, 1), (1, 1, 4, 4)])
    assert data.history_index(3).tolist() == [
        [-1, -1, 0], [-1, -1, 1], [-1, 0, 2], [-1, 1, 3], [0, 2, 4], [-1, -1, 5], [-1, -1, 6],
    ]  # fmt: skip
    cut = data.rows(torch.tensor([1, 1, 0, 1, 1, 1, 1]).bool())
    assert cut.history_index(3)[3].tolist() == [-1, -1, 3]  # depth 2 is gone, so depth 1 is no part of it either
    assert data.history_index(3).dtype == torch.int64
    with pytest.raises(DistillationError, match="a history of 0 states"):
        data.history_index(0)


# ----------------------------------------------------------------------------------------------------------- files


def test_a_saved_set_comes_back_and_says_what_it_holds(tmp_path):
    data = random_set()
    data.save(tmp_path / "d.safetensors")
    back = DistillationSet.load(tmp_path / "d.safetensors")
    assert equal(back, data) and back.about == data.about
    with safe_open(tmp_path / "d.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["distillation_set"])
    assert said["columns"]["plan"] == ["float32", "nHA"] and said["columns"].keys() == COLUMNS.keys()
    assert "0 standard, 1 right-sized" in said["meanings"]["source"]
    data.save(tmp_path / "e.safetensors")
    assert (tmp_path / "d.safetensors").read_bytes() == (tmp_path / "e.safetensors").read_bytes()


def test_several_files_are_one_set(tmp_path):
    parts = [random_set(n, twice=m, seed=n, first_episode=100 * n) for n, m in ((40, 13), (7, 0), (9, 9))]
    files = [tmp_path / f"{len(p)}.safetensors" for p in parts]
    for part, file in zip(parts, files, strict=True):
        part.save(file)
    whole = DistillationSet.load(*files)
    assert_consistent(whole)
    assert len(whole) == 56 and len(whole.again_index) == 22
    assert whole.about == {"task": "tiny", "teacher_key": "abc"}  # what differs is not said of all
    for part, start in zip(parts, (0, 40, 47), strict=True):
        here = (torch.arange(56) >= start) & (torch.arange(56) < start + len(part))
        assert equal(whole.rows(here), part)


def refused(reason, *files):
    """The files do not become a set, which is said in a sentence that names the last one."""
    with pytest.raises(DistillationError, match=reason) as error:
        DistillationSet.load(*files)
    assert str(files[-1]) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_cut_short_or_gone_is_refused(tmp_path):
    path = tmp_path / "d.safetensors"
    random_set().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    refused("is not a distillation set", path)
    refused("is not a distillation set", tmp_path / "gone.safetensors")


UNUSABLE = {  # what happened to a file's tensors t and metadata m -> how it is refused
    "column gone": (lambda t, m: t.pop("depth"), r"other columns than a distillation set \(depth\)"),
    "column more": (
        lambda t, m: t.update(reward=t["mismatch"] + 1),
        r"other columns than a distillation set \(reward\)",
    ),
    "empty": (lambda t, m: t.update({k: v[:0] for k, v in t.items()}), "is empty"),
    "nan": (lambda t, m: t["z_real"][3, :1].fill_(torch.nan), "not finite"),
    "inf": (lambda t, m: t["a_plan"][3, :1].fill_(torch.inf), "not finite"),
    "short column": (lambda t, m: t.update(a_plan=t["a_plan"][:-1]), r"column a_plan is float32 \[39, 2\].*n = 40"),
    "index": (lambda t, m: t["again_index"][:1].fill_(40), "again_index names rows"),
    "source": (lambda t, m: t["source"][:1].fill_(2), "source must hold 0…1"),
    "precision": (lambda t, m: t.update(z_real=t["z_real"].float()), "column z_real is float32"),
    "old": (lambda t, m: m.clear(), "not a distillation set of format"),
    "schema": (lambda t, m: m.update({k: v.replace("float32", "float64") for k, v in m.items()}), "another schema"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_unusable_file_is_refused_with_one_sentence(tmp_path, what):
    path, (spoil, reason) = tmp_path / "d.safetensors", UNUSABLE[what]
    random_set().save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    spoil(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    refused(reason, path)


@pytest.mark.parametrize(
    ("changes", "about", "reason"),
    [
        ({"latent_dim": 2 * LATENT}, {}, "a latent width of 32 and not 16"),
        ({}, {"teacher_key": "xyz"}, "another teacher key"),
        ({}, {"task": "other"}, "another task"),
        ({}, {"execution_horizon": 3}, "another execution horizon"),
        ({"first_episode": 0}, {}, "an episode that the files before it hold too"),
    ],
)
def test_a_file_of_another_collection_does_not_join(tmp_path, changes, about, reason):
    other = random_set(**{"first_episode": 50, **changes})
    other.about |= about
    random_set().save(tmp_path / "a.safetensors")
    other.save(tmp_path / "b.safetensors")
    refused(reason, tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_what_does_not_fit_the_schema_is_not_written(tmp_path):
    data = random_set()
    data.z_pred = data.z_pred.float()
    with pytest.raises(DistillationError, match="column z_pred is float32"):
        data.save(tmp_path / "d.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_100k_states_of_a_5m_teacher_take_less_than_a_gibibyte(tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for i, file in enumerate(files):
        random_set(25_000, twice=2_500, latent_dim=512, first_episode=100 * i).save(file)
    before, most = printed_by(f"""
        from lib.distil.states import DistillationSet
        print(peak())
        data = DistillationSet.load(*{[str(f) for f in files]})
        assert len(data) == 100_000 and data.z_real.shape[1] == 512
        print(peak())
        """)
    assert most < 1.0
    # The latents alone are 0.19 GiB; the set and one file are there at a time, and never the set twice.
    assert 0.19 < most - before < 0.38
