"""Run sources at audit size in a source tree, and say what its simulators were told: `lib.records.audit` runs this
file, as it is today, in the tree of an old commit and in today's.

    python replay.py TREE REQUEST.json ANSWER.json

The request has the fields of a profile, which is added to the tree's own as "audit", and sources with parameters. What
they write lies in the tree under `data/results/audit/`. The answer has, for every episode of every environment, hashes
of the state that it began in, of all actions and of all rewards.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import json
import os
import runpy
import sys
from pathlib import Path


def main(tree: str, request: str, answer: str) -> None:
    wanted = json.loads(Path(request).read_text(encoding="utf-8"))
    sys.path.insert(0, tree)
    # An installed `lib` would lend the tree the modules that it does not have.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
    episodes = listen()
    add_profile(Path(tree), wanted["profile"])
    skip_timing(Path(tree), episodes)
    for source, parameters in wanted["sources"]:
        run(Path(tree) / source, parameters)
    said = [[start, h.hexdigest(), r.hexdigest(), n] for start, h, r, n in episodes if n]
    Path(answer).write_text(json.dumps(sorted(said)), encoding="utf-8")


def add_profile(tree: Path, fields: dict) -> None:
    """The tree's smoke profile with other fields, as far as the tree has them, under the name "audit"; fields that are
    a table are the paper profile's own with what the table changes."""
    first_edition = (tree / "lib" / "profiles.py").is_file()
    profiles = importlib.import_module("lib.profiles" if first_edition else "lib.study.profiles").PROFILES
    smoke = profiles["smoke"]
    known = {field.name for field in dataclasses.fields(smoke)}
    fields = {k: frozen(v) for k, v in fields.items() if k in known and not isinstance(v, dict)} | {
        k: dataclasses.replace(own, **{name: frozen(value) for name, value in v.items()})
        for k, v in fields.items()
        if isinstance(v, dict) and (own := getattr(profiles.get("paper"), k, None))
    }
    profiles["audit"] = dataclasses.replace(smoke, name="audit", **fields)


def frozen(value):
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def skip_timing(tree: Path, episodes: list) -> None:
    """Notebook 04 times steps as well, which an audit has no use for."""
    import pandas as pd

    columns = "arm part batch p50_ms p95_ms mean_ms steps_per_s calls_per_decision".split()
    name = "lib.latency" if (tree / "lib" / "latency.py").is_file() else "lib.study.steps"
    module = importlib.import_module(name)
    if hasattr(module, "step_times"):
        module.step_times = lambda *about, **more: pd.DataFrame(columns=columns)
        return
    measure = module.measure

    def unheard(*about, **more):
        episodes.append(None)  # `listen` notes nothing until it is gone
        try:
            return measure(*about, **more)
        finally:
            episodes.remove(None)

    module.measure = unheard


def listen() -> list[list]:
    """Every episode of dm_control's environments from now on: start state, actions, rewards, steps."""
    os.environ["MUJOCO_GL"] = "disable"  # nothing is drawn here, and a library that is lacking must not matter
    import numpy as np
    from dm_control.rl.control import Environment

    episodes: list[list] = []
    reset, step = Environment.reset, Environment.step

    def heard_reset(self):
        first = reset(self)
        state = self.physics.get_state().tobytes()
        self.heard = [hashlib.sha256(state).hexdigest(), hashlib.sha256(), hashlib.sha256(), 0]
        if None not in episodes:
            episodes.append(self.heard)
        return first

    def heard_step(self, action):
        done = step(self, action)
        self.heard[1].update(np.asarray(action, dtype=np.float64).tobytes())
        self.heard[2].update(np.float64(done.reward or 0.0).tobytes())
        self.heard[3] += 1
        return done

    Environment.reset, Environment.step = heard_reset, heard_step
    return episodes


def run(source: Path, parameters: dict) -> None:
    """A notebook's code cells, or a script, in this process."""
    if source.suffix == ".py":
        sys.argv = [str(source), *(word for name, value in parameters.items() for word in (f"--{name}", str(value)))]
        runpy.run_path(str(source), run_name="__main__")
        return
    os.chdir(source.parent)
    names = {"display": lambda *shown: None, "__name__": "__main__"}
    for cell in json.loads(source.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        text = "".join(cell["source"])
        exec(compile(ast.parse(text), str(source), "exec"), names)
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            names |= {name: type(names[name])(value) for name, value in parameters.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
