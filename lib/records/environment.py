"""Compare the packages that results depend on with requirements.lock, for an environment that make did not install.

python -m lib.records.environment       # one line on stderr for what differs; exit status 1 where one is missing
"""

from __future__ import annotations

import sys
from importlib import metadata

from lib.records.paths import ROOT

COMPARED = ("torch", "mujoco", "dm_control", "numpy", "papermill")


def locked() -> dict[str, str]:
    """The version of each package that requirements.lock asks for."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = (line.split(";")[0].strip().split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name: version for name, version in pins if name in COMPARED}


def main() -> int:
    wanted, found = locked(), {}
    for name in wanted:
        try:
            found[name] = metadata.version(name).split("+")[0]  # 2.13.0+cpu is 2.13.0, of another build
        except metadata.PackageNotFoundError:
            continue
    if missing := [f"{name} {version}" for name, version in wanted.items() if name not in found]:
        print(
            f"error: {sys.executable} has no {', '.join(missing)}; install requirements.lock there, or leave PYTHON= "
            "out, for an environment of make's own.",
            file=sys.stderr,
        )
        return 1
    if other := [f"{name} {found[name]} ({version})" for name, version in wanted.items() if found[name] != version]:
        print(
            f"warning: {sys.executable} has other versions than requirements.lock (in brackets): {', '.join(other)}; "
            "numbers may differ from the committed ones.",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
