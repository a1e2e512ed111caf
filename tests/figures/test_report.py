"""The report's clip: what the saved controller does, named as the pick is."""

import io

from PIL import Image

from figures import film, report
from lib.bundle import save_controller
from lib.policy import PolicyController
from lib.weights.native import load_world_model
from tests.figures.test_film import drawn, uncompiled  # noqa: F401 - fixtures
from tests.study.test_evaluate import CELL, commit, env, home  # noqa: F401 - fixtures


def test_the_clip_shows_the_saved_controller(home, drawn, monkeypatch, tmp_path):  # noqa: F811
    commit(["teacher"], 1)
    monkeypatch.setattr(report, "DECISIONS", 20)  # as many as there are greys
    save_controller(PolicyController(load_world_model(str(CELL))), tmp_path / "folder", {})
    found = {"task": CELL.task, "pick": "policy", "times": {"policy": [1.0] * 101}, "rate": 0.0, "delay": 0}
    clip = report.clip(tmp_path / "folder", found)
    assert clip and Image.open(io.BytesIO(clip)).n_frames == report.DECISIONS // film.EVERY
    assert {name for _, name, *_ in drawn.words} == {"policy"} and drawn.words[-1][3] == 0
