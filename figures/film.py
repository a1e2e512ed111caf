"""A short film: arms side by side from one start state. On screen are their planner calls and returns, how old their
plans are, and the times of a step and of a solve where they were measured.

    python -m figures.film --cell walker-run-1m-1 --profile paper
    python -m figures.film --cell walker-walk-1m-1 --arms policy 64x2+two-tower-6 --decisions 100 --out build/film.gif

The arms are those of the profile's results, as their sidecar has them, or have a delay; `certified` is the cell's
certified pick. An arm is shown once. The start state is not one that is reported. One second of the film is one second
of the robot. Where ffmpeg is on the PATH there is an MP4 as well.
MuJoCo draws without a window, through EGL, OSMesa or GLFW; where none of them works, one line says so and nothing is
written: exit status 1, or 0 with `--optional`, for make.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from lib.config import ConfigError, PlannerConfig, one_of
from lib.environments import ACTION_REPEAT, EPISODE_DECISIONS, make_env
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.seeds import episode_seeds
from lib.records.store import read_sidecar, read_table, write_artefact
from lib.rollout import Decision, rollout
from lib.study.arms import Arm, DelayArm, arm_name, make_arm, make_controller, network_file, networks_of, recorded
from lib.study.certify import ALL
from lib.study.delays import label
from lib.study.profiles import PROFILES
from lib.weights.distilled import NetworkError, load_network
from lib.weights.native import CheckpointError, load_world_model, teacher_key

CERTIFIED = "certified"  # instead of an arm's name
ARMS = ("late-hold-d4", "async+delay-aware-d4", CERTIFIED, "cloned")
WORDS = {  # of schemes, on screen; others have the arm's name
    "teacher": "the full planner",
    "budget": "a smaller planner",
    "late-hold": "late plans, action held",
    "async": "late plans",
    "async+delay-aware": "late plans, corrected",
    "async+delay-aware+clone": "late plans, else a clone",
    "cloned": "a clone that never plans",
}
SIZE, STRIP, ROWS = 240, 80, 4  # pixels: a panel's side, and the height of the rows of words above it
EVERY = 2  # decisions from one frame to the next
LIMIT = 3_000_000  # bytes
COLOURS = (128, 64, 32, 16)  # of the whole film: as many as leave it below the limit
FONT_SIZE = 14
BACKENDS = ("egl", "osmesa", "glfw")
# No shadow, mirror image or stars: without a GPU they take three quarters of the time, and stars do not compress.
PLAIN = {"shadow": False, "reflection": False, "skybox": False}
PROBE = "from dm_control import suite; suite.load('pendulum', 'swingup').physics.render(16, 16)"
PROBE_SECONDS = 120
Times = tuple[float | None, float | None]  # milliseconds of a step, and of a solve


def gl_backend() -> str | None:
    """What can draw here: MUJOCO_GL if it is set, else the first of `BACKENDS` that works; None if nothing does.

    Tried in a process of its own: dm_control chooses when it is imported, and a broken driver may not return.
    """
    asked = os.environ.get("MUJOCO_GL")
    for backend in [asked] if asked else BACKENDS:
        environment = {**os.environ, "MUJOCO_GL": backend}
        try:
            command = [sys.executable, "-c", PROBE]
            done = subprocess.run(command, env=environment, capture_output=True, timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return backend
    return None


def make_film(cell: str, profile: str, names: list[str], decisions: int, out: Path) -> Path:
    """Play and draw the named arms of a cell's results, and write the film with its sidecar.

    Raises `ConfigError` for an arm that was not evaluated and for a film that no palette makes small enough,
    `ResultError` for a cell that was not, `CheckpointError` or `NetworkError` for weights that are lacking.
    """
    if not 1 <= decisions <= EPISODE_DECISIONS:
        raise ConfigError(f"decisions={decisions} must be between 1 and {EPISODE_DECISIONS}, a whole episode.")
    about = read_sidecar(
        paths.results(profile) / "horizon" / f"{paths.named('cell', cell)}.csv", "arms", "teacher", "task"
    )
    teacher, task, seed = about["teacher"], about["task"], episode_seeds("trial", 1)[0]
    wm, panels, came_of_it = load_world_model(teacher, task=task), [], {}
    standard = PlannerConfig.standard(wm.action_dim)
    pick = pick_of(cell, profile) if CERTIFIED in names else None
    chosen = [pick if name == CERTIFIED else arm_of(name, about["arms"], standard) for name in names]
    for name, arm in {arm.name: arm for arm in chosen}.items():
        files = {network: network_file(profile, cell, network) for network in networks_of(arm)}
        networks = {network: load_network(file, teacher_key(teacher)) for network, file in files.items()}
        words, times = words_of(arm, bool(pick) and name == pick.name), times_of(arm, profile, cell)
        controller = make_controller(arm, wm, networks)
        frames, seconds, counts = panel_of(arm, controller, task, seed, decisions, words, tuple(times.values()))
        panels.append(frames)
        came_of_it[name] = counts | times | {"words": words, "label": label(arm)}
    facts = {"cell": cell, "profile": profile, "teacher": teacher, "episode_seed": seed, "decisions": decisions}
    facts, film = facts | {"arms": came_of_it}, beside(panels)
    made = write_artefact(out, lambda path: save_gif(film, path, seconds), **facts)
    if shutil.which("ffmpeg"):
        write_artefact(out.with_suffix(".mp4"), lambda path: save_mp4(film, path, seconds), **facts)
    return made


def arm_of(name: str, evaluated: dict, standard: PlannerConfig) -> Arm:
    """The arm as it was evaluated, or of its name where it has a delay, as those are played in a study of their own."""
    if isinstance(arm := make_arm(name, standard), DelayArm):
        return arm
    return recorded(evaluated[one_of("arm", arm_name(name), evaluated)])


def pick_of(cell: str, profile: str) -> Arm:
    """The certified pick of all chains of a cell (`lib.study.certify`). Raises `ResultError` if there is none."""
    about = read_sidecar(paths.results(profile) / "certified" / f"{cell}.csv", "picks", "arms")
    return recorded(about["arms"][about["picks"][ALL]])


def times_of(arm: Arm, profile: str, cell: str) -> dict[str, float | None]:
    """Medians as they were measured, None where they were not: `step_ms`, and of an arm with a delay `solve_ms`. Its
    step is one that begins no solve, timed with whatever delay and planner, which change nothing in it."""
    names = (f"certified/{cell}-steps.csv", f"deadlines/{cell}-steps.csv", f"latency/{cell}.csv")
    tables = (paths.results(profile) / name for name in names)
    rows = [row for file in tables if file.is_file() for row in read_table(file).query("batch == 1").to_dict("records")]

    def median(part: str, wanted: str, known_as=str) -> float | None:
        same = (row for row in rows if row["part"] == part and known_as(row["arm"]) == known_as(wanted))
        return next((float(row["p50_ms"]) for row in same), None)

    if not isinstance(arm, DelayArm):
        return {"step_ms": median("step", arm.name), "solve_ms": None}
    solve = median("solve", arm.name, planner_of)
    if solve is None and arm.standard_planner:
        solve = median("step", "teacher")  # the encoder's share of it is a thousandth
    return {"step_ms": median("between", arm.name, unplanned), "solve_ms": solve}


def planner_of(name: str) -> str:
    """What stands before the name of an arm that is on a smaller planner."""
    return re.match(r"(\d+×\d+\+)?", name)[0]


def unplanned(name: str) -> str:
    """The name of an arm without its delay and its planner: where no solve begins, its steps are the same."""
    return re.sub(r"-d\d+$", "", name.removeprefix(planner_of(name)))


def panel_of(
    arm: Arm, controller, task: str, seed: int, decisions: int, words: str = "", times: Times = (None, None)
) -> tuple[list[Image.Image], float, dict[str, float]]:
    """The frames of one episode, the seconds from one to the next, and its counts: planner_calls, return, length.
    `words` (`words_of` the arm unless given) and `times`, of a step and of a solve, are for the screen."""
    env = make_env(task, seed)
    env.unwrapped.render_mode = "rgb_array"
    env.unwrapped.render_kwargs = dict(height=SIZE, width=SIZE, camera_id=0, render_flag_overrides=PLAIN)
    seconds = env.unwrapped.dt * ACTION_REPEAT * EVERY
    counts, frames = {"planner_calls": 0, "return": 0.0, "length": 0}, []
    for decision, step in enumerate(rollout(controller, [env], [seed], decisions, f"film {arm.name}")):
        counts["planner_calls"] += int(step.info["planner_called"][0])
        counts["return"] += float(step.rewards[0])
        counts["length"] += 1
        if decision % EVERY == 0:
            said = words or words_of(arm), times, counts["planner_calls"], age_of(step), counts["return"]
            frames.append(captioned(env.render(), *said))
    env.close()
    if not frames:
        raise ConfigError(f"{arm.name} has no frame to show: the simulator diverged at its first decision.")
    return frames, seconds, counts


def words_of(arm: Arm, certified: bool = False) -> str:
    """What an arm is called on screen, with the size of its planner, and that it is what was certified."""
    size = f"{arm.planner.samples}×{arm.planner.iterations}" if arm.planner else ""
    words = WORDS.get(arm.scheme, arm.name)
    if certified and arm.scheme == "budget":
        words = size
    elif size and arm.scheme in WORDS:
        words += f" ({size})"
    return f"certified: {words}" if certified else words


def age_of(step: Decision) -> float | None:
    """How many decisions ago the world was seen that the plan in use knew; None where the arm has no such plan."""
    age = step.info.get("plan_age", [math.nan])[0]
    return None if math.isnan(age) else float(age)


def captioned(picture, name: str, times: Times, calls: int, age: float | None, total: float) -> Image.Image:
    """A picture (SIZE, SIZE, 3) below the words that belong to it; × is written x, which Pillow's own font has."""
    panel = Image.new("RGB", (SIZE, SIZE + STRIP), "white")
    panel.paste(Image.fromarray(picture), (0, STRIP))
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(FONT_SIZE)
    step, solve = ("" if ms is None else f"{ms:.0f} ms" if ms >= 10 else f"{ms:.2g} ms" for ms in times)
    rows = (
        (name.replace("×", "x"), ""),
        (f"{calls} planner call{'' if calls == 1 else 's'}" if calls else "no planner call", f"return {total:.0f}"),
        (step and f"{step} a step", solve and f"{solve} a solve"),
        ("" if age is None else f"plan {age:.0f} decisions old", ""),
    )
    for row, words in enumerate(rows):
        y = 3 + row * STRIP // ROWS
        draw.text((5, y), words[0], "black", font)
        draw.text((SIZE - 5, y), words[1], "black", font, anchor="ra")
    return panel


def beside(panels: list[list[Image.Image]]) -> list[Image.Image]:
    """The panels of all arms in one frame; where an episode has ended, its last picture stays."""
    width, frames = SIZE + 4, []
    for number in range(max(map(len, panels))):
        frame = Image.new("RGB", (width * len(panels) - 4, SIZE + STRIP), "white")
        for position, mine in enumerate(panels):
            frame.paste(mine[min(number, len(mine) - 1)], (width * position, 0))
        frames.append(frame)
    return frames


def save_gif(frames: list[Image.Image], path: Path, seconds: float, limit: int = 0) -> None:
    """Write an endless GIF with as many of `COLOURS` as leave it below `limit` bytes, 0 for `LIMIT`; `ConfigError` if
    none does."""
    limit = limit or LIMIT
    first, last = frames[0], frames[-1]
    both = Image.new("RGB", (first.width, 2 * first.height))  # one palette for all: what stands still costs nothing
    both.paste(first, (0, 0))
    both.paste(last, (0, first.height))
    for colours in tqdm(COLOURS, desc="writing the film", unit="palette", leave=False):
        palette = both.quantize(colours)
        images = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
        images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 * seconds), loop=0)
        if path.stat().st_size <= limit:
            return
    raise ConfigError(f"the film is larger than {limit / 1e6:g} MB with {colours} colours; give fewer --decisions.")


def save_mp4(frames: list[Image.Image], path: Path, seconds: float) -> None:
    """The same frames as H.264, which players can pause."""
    size, rate = "x".join(map(str, frames[0].size)), str(1 / seconds)
    read = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", rate, "-i", "-"]
    write = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", str(path)]
    command = ["ffmpeg", "-y", "-loglevel", "error", *read, *write]
    done = subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), capture_output=True)
    if done.returncode:
        raise ConfigError(f"ffmpeg wrote no film: {done.stderr.decode(errors='replace').strip()[-200:]}")


@dataclass(frozen=True)
class Film:
    """Arms side by side from one start state."""

    cell: str  # as its results are named
    profile: str = "quick"
    arms: tuple[str, ...] = ARMS  # panels from left to right
    decisions: int = 200
    out: Path | None = None  # figures/<profile>/film.gif unless given
    optional: bool = False  # exit status 0 where nothing can draw


def main(arguments: list[str] | None = None) -> int:
    given = tyro.cli(Film, prog="python -m figures.film", args=arguments)
    backend = gl_backend()
    if backend is None:
        tried = os.environ.get("MUJOCO_GL") or ", ".join(BACKENDS)
        print(
            f"film: left out, as no GL library draws here (tried {tried}); install libegl1 or libosmesa6.",
            file=sys.stderr,
        )
        return 0 if given.optional else 1
    os.environ["MUJOCO_GL"] = backend
    try:
        out = given.out or paths.figures(one_of("profile", given.profile, PROFILES)) / "film.gif"
        print(make_film(given.cell, given.profile, given.arms, given.decisions, out))
    except (ConfigError, CheckpointError, NetworkError, ResultError) as error:
        print(f"film: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
