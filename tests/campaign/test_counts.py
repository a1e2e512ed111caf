"""The docs' table of what the campaign tries is what it tries."""

import re

from lib.records.paths import ROOT
from tests.campaign import test_bad_inputs as bad
from tests.campaign.test_kills import WORK

TRIES = {
    "parameters of notebooks": sum(map(len, bad.PARAMETERS.values())),
    "command lines": len(bad.COMMANDS),
    "files of weights": len(bad.FILES),
    "damaged records of results": len(bad.SIDECARS),
    "manifests of teachers": len(bad.MANIFESTS),
    "observations, by two controllers": 2 * len(bad.OBSERVATIONS),
    "settings of the planner": len(bad.SETTINGS),
} | {f"kills of {kind}, at its writes": work.kills for kind, work in WORK.items()}


def test_the_docs_tell_what_is_tried():
    table = re.findall(r"^\| ([^|]+) \| (\d+) \|$", (ROOT / "paper" / "docs" / "tests.md").read_text(), re.MULTILINE)
    assert {what: int(count) for what, count in table if what in TRIES} == TRIES
    assert sum(work.kills for work in WORK.values()) >= 30
    assert sum(TRIES.values()) - sum(work.kills for work in WORK.values()) >= 60
