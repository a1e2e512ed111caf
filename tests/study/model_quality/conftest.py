"""Folders of a repository of its own, for what writes results or looks for weights; a simulator and a random model."""

import pytest

from lib.records import paths
from lib.study.model_quality.oracle import Oracle
from tests.tiny import tiny_model


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("DATA", "CACHE", "TEACHERS", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", str(paths.TEACHERS))
    paths.TEACHERS.mkdir()


@pytest.fixture(scope="module")
def oracle():
    return Oracle("cartpole-swingup")


@pytest.fixture(scope="module")
def wm():
    return tiny_model(action_dim=1)
