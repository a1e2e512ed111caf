"""A model size for runs of seconds, one of them, and folders where they ship to."""

import pytest

from lib.config import MODEL_SIZES, PlannerConfig
from lib.records import paths
from lib.teachers.training import TrainingRun
from tests.teachers.tiny import CONFIG, SIZE


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch):
    monkeypatch.setitem(MODEL_SIZES, "tiny", SIZE)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """The folder of shipped teachers, in a repository of its own, where cards are measured with a tiny planner."""
    for name in ("CACHE", "TEACHERS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    monkeypatch.setattr(PlannerConfig, "standard", classmethod(lambda cls, action_dim, **_: cls.budget(16, 2)))
    paths.TEACHERS.mkdir()
    return paths.TEACHERS


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder, its object and its final world model."""
    folder = tmp_path_factory.mktemp("whole")
    run = TrainingRun(CONFIG, folder)
    return folder, run, run.train()


@pytest.fixture
def replay(whole):
    return whole[0] / "train_buffer.safetensors"
