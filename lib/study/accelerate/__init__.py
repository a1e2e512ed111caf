"""From a checkpoint to a fast controller: measured, distilled, certified and written as a folder, within minutes."""

from lib.study.accelerate.run import accelerate
from lib.study.stats.certification import NothingToKeep

__all__ = ["NothingToKeep", "accelerate"]
