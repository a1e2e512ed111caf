"""Which start states a teacher's tests have had: of those that were seen no other test can be made.

tests = Tests.of(cell, key, {"task": task}, {"keep": 0.98, "plan": plan.settings})
tests.first                     # where the seeds of this one begin; it is not the first: tests.others
tests.note(count=50)            # before any of it is known
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lib.records import paths
from lib.records.keys import key_of
from lib.records.ledger import name_of
from lib.records.store import write_json
from lib.study.accelerate.plan import MOST
from lib.study.cells import Cell


@dataclass
class Tests:
    """The tests of one teacher in one environment, whatever share, rate or minutes were asked for; and of these the one
    of today's `settings`. `count` episodes of each candidate were begun by it (0: none yet), `check` of its pick."""

    file: Path
    settings: str
    kept: dict[str, dict]

    @classmethod
    def of(cls, cell: Cell, about: dict, settings: dict) -> Tests:
        file = paths.CACHE / "accelerate" / f"{cell}-tests-{name_of(key_of((), about))}.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return cls(file, json.dumps(settings, sort_keys=True), kept)

    @property
    def mine(self) -> dict[str, int]:
        return self.kept.get(self.settings, {"first": MOST * len(self.kept), "count": 0, "check": 0})

    @property
    def first(self) -> int:
        return self.mine["first"]

    @property
    def others(self) -> int:
        """Tests that were begun before this one."""
        return self.first // MOST

    def note(self, **what: int) -> None:
        """Keep what this test is about to play."""
        self.kept[self.settings] = self.mine | what
        write_json(self.file, self.kept)
