"""The networks of a cell's arms by name: each made as the profile says where it is lacking."""

from __future__ import annotations

from pathlib import Path

from lib.correctors import CORRECTORS
from lib.study.arms import DELAY_AWARE, DRAFTED
from lib.study.cells import Cell, Settings
from lib.study.delay_training import ensure_delay_aware
from lib.study.distillation import ensure_corrector
from lib.study.drafting import ensure_draft


def ensure_network(settings: Settings, cell: Cell, name: str) -> Path:
    """The profile's draft of this name, its corrector of this architecture, or the one that knows late plans."""
    return MAKERS[name](settings, cell, name)


MAKERS = dict.fromkeys(DRAFTED, ensure_draft) | dict.fromkeys(CORRECTORS, ensure_corrector)
MAKERS |= {DELAY_AWARE: ensure_delay_aware}
