"""The film: frames and counts of the episodes it shows, a file that is small enough, and a line where nothing draws."""

import os

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageSequence

from figures import film
from figures.film import CERTIFIED, COLOURS, ROWS, SIZE, STRIP, beside, captioned, gl_backend, main, save_gif
from lib.config import PlannerConfig
from lib.records import paths
from lib.records.store import intact, read_sidecar, write_table
from lib.study.arms import make_arm
from tests.study.test_evaluate import CELL, FIRST, commit, env, home  # noqa: F401 - fixtures
from tests.tiny import fresh_env

ARMS = ["policy", "open-loop-3", "two-tower-3"]
NO = None, None  # times
FRAME = (3 * SIZE + 8, SIZE + STRIP)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    monkeypatch.setenv("CXX", "no-compiler")  # compiling the policy prior would take longer than all tests here


@pytest.fixture
def drawn(monkeypatch):
    """Environments that draw themselves: a grey that changes at every decision. Words are noted in `drawn.words`."""
    made = fresh_env()

    class Drawn(made):
        dt = 0.025
        unwrapped = property(lambda self: self)
        words = []

        def render(self):
            assert (self.render_mode, self.render_kwargs["width"]) == ("rgb_array", SIZE)
            return np.full((SIZE, SIZE, 3), 10 * self.decision, np.uint8)

        def close(self):
            pass

    def noted(picture, *words):
        Drawn.words.append((int(picture[0, 0, 0]) // 10, *words))
        return captioned(picture, *words)

    monkeypatch.setattr(film, "make_env", Drawn)
    monkeypatch.setattr(film, "captioned", noted)
    monkeypatch.setattr(film, "gl_backend", lambda: "egl")
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "disable"))  # main sets it
    return Drawn


def shoot(tmp_path, arms=ARMS, decisions=9):
    """The film of a smoke cell, and the exit status."""
    out = tmp_path / "film.gif"
    options = ["--cell", str(CELL), "--profile", "smoke", "--decisions", str(decisions), "--out", str(out)]
    return out, main([*options, "--arms", *arms])


def test_the_film_shows_what_the_arms_do(home, drawn, tmp_path):
    commit(["teacher", *ARMS], 1)
    out, status = shoot(tmp_path)
    assert status == 0 and intact(out)
    with Image.open(out) as film_file:
        pictures = [picture.convert("RGB") for picture in ImageSequence.Iterator(film_file)]
        assert film_file.info["loop"] == 0 and film_file.info["duration"] == 100  # 2 decisions of 2 × 0.025 s
    assert len(pictures) == 5 and {p.size for p in pictures} == {FRAME}  # decisions 1, 3, 5, 7 and 9
    assert drawn.starts == [drawn.starts[0]] * 3 and drawn.starts[0][0] == FIRST  # a trial seed, not a reported one
    rewards = {name: replayed(drawn, number) for number, name in enumerate(ARMS)}
    calls = {"policy": [0] * 9, "open-loop-3": [1, 1, 1, 2, 2, 2, 3, 3, 3], "two-tower-3": [1, 1, 1, 2, 2, 2, 3, 3, 3]}
    expected = [(d + 1, name, (None, None), calls[name][d], None, pytest.approx(sum(rewards[name][: d + 1])))
                for name in ARMS for d in range(0, 9, 2)]  # fmt: skip
    assert drawn.words == expected
    about = read_sidecar(out)
    assert about["arms"] == {
        name: {
            "planner_calls": calls[name][-1],
            "return": pytest.approx(sum(rewards[name])),
            "length": 9,
            "step_ms": None,
            "solve_ms": None,
            "words": name,
            "label": {"arm": name.removesuffix("-3"), "planner": planner, "delay": None},
        }
        for name, planner in zip(ARMS, (None, "16×2", "16×2"), strict=True)
    }
    assert (about["cell"], about["episode_seed"], about["decisions"]) == (str(CELL), FIRST, 9)


def replayed(environment, number: int) -> list[float]:
    """The rewards of the actions that the arm of that number executed, in an environment of their own."""
    actions = [action for _, _, action in environment.steps[9 * number : 9 * (number + 1)]]
    world = fresh_env()("tiny")
    world.reset(seed=FIRST)
    return [world.step(action)[1] for action in actions]


def test_an_episode_that_ends_early_keeps_its_last_picture(home, drawn, tmp_path):
    commit(["teacher", *ARMS], 1)
    drawn.ends[FIRST] = 4
    out, status = shoot(tmp_path)
    with Image.open(out) as film_file:
        assert status == 0 and film_file.n_frames == 2
    assert all(arm["length"] == 4 for arm in read_sidecar(out)["arms"].values())
    short, long = [captioned(grey(1), "a", NO, 0, None, 0)], [captioned(grey(n), "b", NO, n, n, n) for n in range(3)]
    frames = beside([short, long])
    assert len(frames) == 3
    for frame, picture in zip(frames, long, strict=True):
        assert not ImageChops.difference(frame.crop((0, 0, *short[0].size)), short[0]).getbbox()
        right = frame.crop((SIZE + 4, 0, 2 * SIZE + 4, SIZE + STRIP))
        assert not ImageChops.difference(right, picture).getbbox()


def test_plans_that_come_late_are_shown_with_their_age_and_steps_with_their_time(home, drawn, tmp_path):
    commit(["teacher", *ARMS], 1)
    folder = paths.results("smoke")
    timed = [
        ("policy", "step", 1, 0.5), ("64×2+late-hold-d8", "step", 1, 9.0), ("64×2+late-hold-d8", "between", 1, 0.25),
        ("64×2+late-hold-d8", "between", 2, 7.0), ("64×2+late-hold-d8", "solve", 1, 8.0),
        ("16×1+async-d8", "solve", 2, 6.0), ("16×1+async-d8", "solve", 1, 2.5),
    ]  # fmt: skip
    columns = ["arm", "part", "batch", "p50_ms"]
    rows = [dict(zip(columns, row, strict=True)) for row in timed]
    write_table(folder / "deadlines" / f"{CELL}-steps.csv", rows)
    small, large, other = "16×1+late-hold-d3", "late-hold-d3", "32×1+late-hold-d3"
    teacher = {"arm": "teacher", "part": "step", "batch": 1, "p50_ms": 148.2}
    write_table(folder / "latency" / f"{CELL}.csv", [teacher, teacher | {"arm": "budget-32×1", "p50_ms": 3.0}])
    out, status = shoot(tmp_path, [small, large, other, "policy"])
    assert status == 0
    expected = {small: (0.25, 2.5), large: (0.25, 148.2), other: (0.25, None), "policy": (0.5, None)}
    about = read_sidecar(out)["arms"]
    assert {name: (arm["step_ms"], arm["solve_ms"]) for name, arm in about.items()} == expected
    assert about[large]["label"] == {"arm": "late-hold", "planner": "512×6", "delay": 3}
    shown = [(name, times, age) for _, name, times, _, age, _ in drawn.words]
    words = "late plans, action held ({})".format
    assert shown[:5] == [(words("16×1"), (0.25, 2.5), age) for age in (None, None, 4.0, 3.0, 5.0)]
    assert [row[:2] for row in shown[5::5]] == [
        (words("512×6"), (0.25, 148.2)),
        (words("32×1"), (0.25, None)),
        ("policy", (0.5, None)),
    ]


def test_the_certified_pick_is_shown_as_its_sidecar_has_it(home, drawn, tmp_path, capsys):
    commit(["teacher", "budget-16×1"], 1)
    folder = paths.results("smoke")
    assert shoot(tmp_path, [CERTIFIED])[1] == 2 and f"certified/{CELL}.csv" in capsys.readouterr().err
    arms = read_sidecar(folder / "horizon" / f"{CELL}.csv", "arms")["arms"]
    about = {"picks": {"planners": "teacher", "all": "budget-16×1"}, "arms": arms}
    write_table(folder / "certified" / f"{CELL}.csv", [{"chain": "planners"}], **about)
    rows = [{"arm": f"budget-{planner}", "part": "step", "batch": 1, "p50_ms": ms}
            for planner, ms in (("64×2", 9.0), ("16×1", 3.0))]  # fmt: skip
    write_table(folder / "latency" / f"{CELL}.csv", rows)
    out, status = shoot(tmp_path, [CERTIFIED])
    assert status == 0 and read_sidecar(out)["arms"]["budget-16×1"]["planner_calls"] == 9
    assert {(name, times) for _, name, times, *_ in drawn.words} == {("certified: 16×1", (3.0, None))}
    drawn.words.clear()  # by its name it is what any other is; with both it is shown once
    shoot(tmp_path, ["budget-16×1", "teacher"])
    assert {name for _, name, *_ in drawn.words} == {"a smaller planner (16×1)", "the full planner (16×2)"}
    out, status = shoot(tmp_path, [CERTIFIED, "budget-16×1"])
    assert status == 0 and Image.open(out).size == (SIZE, SIZE + STRIP)
    assert read_sidecar(out)["arms"]["budget-16×1"]["words"] == "certified: 16×1"


def test_a_pick_is_called_certified_with_what_it_is():
    standard = PlannerConfig.standard(6)
    for name, words in (
        ("cloned", "a clone that never plans"),
        ("teacher", "the full planner (512×6)"),
        ("64x2+gated-6", "64×2+gated-6"),
    ):
        assert film.words_of(make_arm(name, standard), certified=True) == f"certified: {words}"


def test_where_ffmpeg_is_there_is_a_film_that_can_pause(tmp_path):
    if not film.shutil.which("ffmpeg"):
        pytest.skip("needs ffmpeg")
    frames = [captioned(grey(n), "a", NO, n, None, 0) for n in range(4)]
    film.save_mp4(frames, tmp_path / "film.mp4", 0.1)
    data = (tmp_path / "film.mp4").read_bytes()
    assert data[4:8] == b"ftyp" and data.index(b"moov") < data.index(b"mdat")  # it begins before it is there as a whole
    with pytest.raises(film.ConfigError, match="ffmpeg wrote no film: "):
        film.save_mp4(frames, tmp_path / "nowhere" / "film.mp4", 0.1)


def test_an_episode_that_diverges_at_once_has_no_film(home, drawn, tmp_path, capsys):
    commit(["teacher", *ARMS], 1)
    drawn.breaks[FIRST] = 1
    assert shoot(tmp_path)[1] == 2
    assert "film: policy has no frame to show: the simulator diverged at its first decision." in capsys.readouterr().err


def grey(level: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), 20 * level, np.uint8)


def test_every_word_is_on_the_picture():
    plain = captioned(grey(3), "", NO, 1, None, 0.0)
    assert plain.size == (SIZE, SIZE + STRIP)
    assert np.array_equal(np.asarray(plain)[STRIP:], grey(3))
    for one in (("a", NO, 1, None, 0.0), ("", (0.5, None), 1, None, 0.0), ("", (None, 148.0), 1, None, 0.0),
                ("", NO, 2, None, 0.0), ("", NO, 1, 4.0, 0.0), ("", NO, 1, None, 10.0)):  # fmt: skip
        changed = captioned(grey(3), *one)
        left, top, right, bottom = ImageChops.difference(plain, changed).getbbox()
        assert bottom <= STRIP and right <= SIZE
    widest = ("64x2+plan-ahead+two-tower-6", False), ("cloned", True), ("128x2+draft+gated-3-r30", True)
    for arm, certified in (("async+delay-aware+clone-d4", False), *widest):
        name = film.words_of(make_arm(arm, PlannerConfig()), certified)
        words = captioned(grey(3), name, (0.31, 148.2), 500, 12.0, 1000.0)
        dark = np.asarray(words.convert("L"))[:STRIP] < 128
        for row, parts in enumerate((1, 2, 2, 1)):
            mine = dark[row * STRIP // ROWS : (row + 1) * STRIP // ROWS].any(axis=0)
            assert mine.any() and not mine[:4].any() and not mine[-4:].any()
            gaps = "".join("#" if one else " " for one in mine).strip().split(" " * 10)  # between left and right
            assert len(list(filter(None, gaps))) == parts
    plain_words = captioned(grey(3), name.replace("×", "x"), (0.31, 148.2), 500, 12.0, 1000.0)  # the font has no ×
    assert not ImageChops.difference(words, plain_words).getbbox()


@pytest.mark.parametrize(
    ("time", "words"), [(0.1756, "0.18 ms"), (9.4, "9.4 ms"), (9.98, "10 ms"), (14.56, "15 ms"), (148.2, "148 ms")]
)
def test_times_are_written_without_powers_of_ten(monkeypatch, time, words):
    written = []
    monkeypatch.setattr(film.ImageDraw.ImageDraw, "text", lambda draw, at, text, *_, **__: written.append(text))
    captioned(grey(3), "a", (time, 148.2), 50, 5.0, 24.0)
    rows = ["a", "50 planner calls", "return 24", f"{words} a step", "148 ms a solve", "plan 5 decisions old"]
    assert [*filter(None, written)] == rows


def test_colours_go_down_until_the_film_is_small_enough(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (60, 60, 3), np.uint8)) for _ in range(4)]
    sizes = []
    for limit in (10**6, None, 10):
        monkeypatch.setattr(film, "LIMIT", sizes[0] - 1 if limit is None else limit)
        if limit == 10:
            with pytest.raises(film.ConfigError, match="larger than .* with 16 colours; give fewer --decisions"):
                save_gif(frames, tmp_path / "film.gif", 0.1)
            return
        save_gif(frames, tmp_path / "film.gif", 0.1)
        sizes.append((tmp_path / "film.gif").stat().st_size)
        with Image.open(tmp_path / "film.gif") as made:
            assert len(made.getcolors()) <= COLOURS[len(sizes) - 1]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("optional", [True, False])
def test_without_a_gl_library_one_line_says_so(monkeypatch, capsys, tmp_path, optional):
    monkeypatch.setattr(film, "gl_backend", lambda: None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    out = tmp_path / "film.gif"
    status = main(["--cell", "walker-walk-1m-1", "--out", str(out), *(["--optional"] if optional else [])])
    said = capsys.readouterr()
    assert status == (0 if optional else 1) and not out.exists() and not said.out
    assert said.err.count("\n") == 1 and "no GL library draws here (tried egl, osmesa, glfw)" in said.err


def test_what_draws_is_tried_in_turn(monkeypatch):
    tried = []

    def run(command, env, **options):
        tried.append(env["MUJOCO_GL"])
        if tried[-1] == "egl":
            raise film.subprocess.TimeoutExpired(command, 1)
        return film.subprocess.CompletedProcess(command, int(tried[-1] != "glfw"))

    monkeypatch.setattr(film.subprocess, "run", run)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert gl_backend() == "glfw" and tried == ["egl", "osmesa", "glfw"]
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert gl_backend() is None and tried[3:] == ["osmesa"]


def test_a_machine_that_may_not_draw_does_not(monkeypatch):
    """The real probe, where dm_control is told to draw nothing."""
    monkeypatch.setenv("MUJOCO_GL", "disable")
    assert gl_backend() is None


def test_bad_input_is_a_sentence(home, drawn, tmp_path, capsys):
    assert shoot(tmp_path)[1] == 2  # nothing was evaluated
    commit(["teacher", "policy"], 1)
    for arms, decisions, words in (
        (["policy", "open-loop-6"], 9, "arm='open-loop-6' is not known; use one of: teacher, policy"),
        (["policy"], 0, "decisions=0 must be between 1 and 500"),
    ):
        capsys.readouterr()
        out, status = shoot(tmp_path, arms, decisions)
        said = capsys.readouterr().err
        assert status == 2 and words in said and said.startswith("film: ") and not out.exists()
    for given, words in (
        (["--cell", "../x"], "cell='../x' cannot be"),
        (["--profile", "../x"], "profile='../x' is not"),
    ):
        assert main(["--cell", str(CELL), "--profile", "smoke", *given]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_film(tmp_path):
    """The shipped teacher of the quickest task, where a GL library draws."""
    if not (paths.results("paper") / "horizon" / "walker-walk-1m-1.csv").is_file() or gl_backend() is None:
        pytest.skip("no committed arms, or nothing draws here")
    command = [film.sys.executable, "-m", "figures.film", "--cell", "walker-walk-1m-1", "--profile", "paper"]
    command += ["--arms", "policy", "--decisions", "8", "--out", str(tmp_path / "film.gif")]
    done = film.subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "film.gif") as made:
        picture = np.asarray(made.convert("RGB"))[STRIP:]
        assert made.n_frames == 4 and picture.std() > 10  # not one colour
