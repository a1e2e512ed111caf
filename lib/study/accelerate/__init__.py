"""From a checkpoint to a fast controller: measured, distilled, certified and written as a folder, within minutes."""

from lib.study.accelerate.run import accelerate

__all__ = ["accelerate"]
