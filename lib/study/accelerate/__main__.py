"""From a TD-MPC2 checkpoint to a fast controller, with proof.

    python -m lib.study.accelerate walker-walk-1m-1 --env walker-walk --minutes 30 --out build/my-controller
    python -m lib.study.accelerate weights.pt --env my_env:make --rate 50 --keep 0.95

Measures the teacher on this machine, finds the right-sized planner, distils a draft and a corrector from it, tests the
candidates and writes the cheapest that is shown to keep the share: controller.json and weights.safetensors, which
`lib.load_controller` reads, report.html and episodes.csv. Repeat the command to go on where it was ended, with as many
minutes again. With other minutes, another rate or share all is planned anew, and tested on start states that no test
has seen.

With --rate, a planner whose solves do not fit into a period plans in the background, in a thread of the controller's:
reset() begins it, close() ends it. Such a controller cannot be exported. Clips are made of tasks of DMControl.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro

from lib.bundle import BundleError
from lib.config import ConfigError
from lib.environments import EnvironmentFailed
from lib.records.ending import endable
from lib.records.keys import ResultError
from lib.study.accelerate import accelerate
from lib.study.stats.certification import KEEP, NothingToKeep
from lib.weights.distilled import NetworkError
from lib.weights.native import CheckpointError


@dataclass(frozen=True)
class Command:
    """From a TD-MPC2 checkpoint to a fast controller."""

    checkpoint: tyro.conf.Positional[str]  # name of a teacher, or a weights file
    env: str  # DMControl task, gym:<id>, or module:factory
    rate: float = 0.0  # decisions per second; 0: no deadline
    keep: float = KEEP  # the share of the teacher's return
    minutes: float = 30.0
    out: str = ""  # a new folder; build/<teacher> unless given


def main(arguments: list[str] | None = None) -> int:
    given = tyro.cli(Command, prog="python -m lib.study.accelerate", args=arguments)
    try:
        with endable():
            folder, found = accelerate(given.checkpoint, given.env, given.rate, given.keep, given.minutes, given.out)
    except NothingToKeep as error:
        print(f"accelerate: {error}", file=sys.stderr)
        return 1
    except (ConfigError, CheckpointError, NetworkError) as error:
        print(f"accelerate: {error}", file=sys.stderr)
        return 2
    except (EnvironmentFailed, ResultError, BundleError) as error:
        print(f"accelerate: {error} What was finished is kept: the same command goes on.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("accelerate: interrupted; what was finished is kept: the same command goes on.", file=sys.stderr)
        return 130
    print(found["why"])
    for what in found["left_out"]:
        print(f"Left out: {what}.")
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
