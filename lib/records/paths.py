"""Where each artefact lives, found from the repository root: notebooks and scripts run from any directory."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
PAPER = ROOT / "paper"
DATA = ROOT / "data"
TEACHERS = DATA / "teachers"  # shipped weights, each with a card; never written by anything but training
CACHE = DATA / "cache"  # distillation sets, correctors, training runs: made on demand, not committed
BUILD = ROOT / "build"  # executed notebooks, figures in progress, PDFs: evidence, never an input


def results(profile: str) -> Path:
    """Folder of a profile's result files, `data/results/<profile>`."""
    return DATA / "results" / profile


def executed(profile: str) -> Path:
    """Folder of a profile's executed notebooks, `build/<profile>`."""
    return BUILD / profile


def figures(profile: str) -> Path:
    """Folder of a profile's rendered figures, `figures/<profile>` (the paper profile's SVG and PNG are committed)."""
    return FIGURES / profile
