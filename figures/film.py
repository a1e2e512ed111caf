"""A short film: arms side by side from one start state, their planner calls and returns counted on screen.

    python -m figures.film --cell walker-walk-1m-1 --profile paper
    python -m figures.film --cell walker-walk-1m-1 --arms policy 64x2+two-tower-6 --decisions 100 --out build/film.gif

The arms are those of the profile's results, as their sidecar has them; the start state is not one that is reported. One
second of the film is one second of the robot. MuJoCo draws without a window, through EGL, OSMesa or GLFW; where none of
them works, one line says so and nothing is written: exit status 1, or 0 with `--optional`, for make.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from lib.config import ConfigError, one_of
from lib.environments import ACTION_REPEAT, EPISODE_DECISIONS, make_env
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.seeds import episode_seeds
from lib.records.store import read_sidecar, write_artefact
from lib.rollout import rollout
from lib.study.arms import Arm, arm_name, make_controller, network_file, recorded
from lib.study.profiles import PROFILES
from lib.weights.distilled import NetworkError, load_network
from lib.weights.native import CheckpointError, load_world_model, teacher_key

ARMS = ("teacher", "64×2+open-loop-6", "64×2+gated-6")
SIZE, STRIP = 240, 42  # pixels: a panel's side, and the height of the words above it
EVERY = 2  # decisions from one frame to the next
LIMIT = 4_000_000  # bytes
COLOURS = (128, 64, 32, 16)  # of the whole film: as many as leave it below the limit
FONT_SIZE = 14
BACKENDS = ("egl", "osmesa", "glfw")
# No shadow, mirror image or stars: without a GPU they take three quarters of the time, and stars do not compress.
PLAIN = {"shadow": False, "reflection": False, "skybox": False}
PROBE = "from dm_control import suite; suite.load('pendulum', 'swingup').physics.render(16, 16)"
PROBE_SECONDS = 120


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
    arms = [recorded(about["arms"][one_of("arm", arm_name(name), about["arms"])]) for name in names]
    teacher, task, seed = about["teacher"], about["task"], episode_seeds("trial", 1)[0]
    wm, panels, came_of_it = load_world_model(teacher, task=task), [], {}
    for arm in arms:
        file = network_file(profile, cell, arm.corrector)
        correctors = {arm.corrector: load_network(file, teacher_key(teacher))} if arm.corrector else {}
        frames, seconds, counts = panel_of(arm, make_controller(arm, wm, correctors), task, seed, decisions)
        panels.append(frames)
        came_of_it[arm.name] = counts
    facts = {"cell": cell, "profile": profile, "teacher": teacher, "episode_seed": seed, "decisions": decisions}
    film = beside(panels)
    return write_artefact(out, lambda path: save_gif(film, path, seconds), **facts, arms=came_of_it)


def panel_of(
    arm: Arm, controller, task: str, seed: int, decisions: int
) -> tuple[list[Image.Image], float, dict[str, float]]:
    """The frames of one episode, the seconds from one to the next, and its counts: planner_calls, return, length."""
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
            frames.append(captioned(env.render(), arm.name, counts["planner_calls"], counts["return"]))
    env.close()
    if not frames:
        raise ConfigError(f"{arm.name} has no frame to show: the simulator diverged at its first decision.")
    return frames, seconds, counts


def captioned(picture, name: str, calls: int, total: float) -> Image.Image:
    """A picture (SIZE, SIZE, 3) below the words that belong to it; × is written x, which Pillow's own font has."""
    panel = Image.new("RGB", (SIZE, SIZE + STRIP), "white")
    panel.paste(Image.fromarray(picture), (0, STRIP))
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(FONT_SIZE)
    draw.text((5, 3), name.replace("×", "x"), "black", font)
    draw.text((5, 3 + STRIP // 2), f"{calls} planner call{'' if calls == 1 else 's'}", "black", font)
    draw.text((SIZE - 5, 3 + STRIP // 2), f"return {total:.0f}", "black", font, anchor="ra")
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
