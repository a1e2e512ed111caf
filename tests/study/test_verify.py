"""Committed episodes are run again and compared."""

import pytest

from lib.records import paths
from lib.records.store import describe, read_sidecar, read_table
from lib.study.verify import main, verify
from tests.study.test_evaluate import ARMS, CELL, FIRST, commit, corrector_file, env, home, new_teacher  # noqa: F401 - fixtures


def falsify(arm, change, signed=True):
    """Change the return of an arm's first committed episode; `signed`: the sidecar agrees."""
    file = paths.results("smoke") / "horizon" / f"{CELL}.csv"
    table = read_table(file)
    table.loc[(table["arm"] == arm) & (table["episode_seed"] == FIRST), "return"] += change
    table.to_csv(file, index=False)
    if signed:
        describe(file, **{name: read_sidecar(file)[name] for name in ("arms", "teacher", "task")})


def test_verify_passes_on_what_was_just_written(home, capsys):
    commit(episodes=3)
    assert verify("smoke", sample=3) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * len(ARMS) and all(line.startswith("ok ") for line in lines)
    for line in lines:
        now, before = line.split(": ")[1].split(", ")
        assert float(now.split()[0]) == pytest.approx(float(before.split()[0]), abs=0.11)
    assert main(["--profile", "smoke"]) == 0


@pytest.mark.parametrize("arm", ["policy", "two-tower-3"])
@pytest.mark.parametrize("change", [-60.0, 60.0])
def test_verify_finds_a_falsified_return(home, arm, change):
    commit(episodes=4)
    falsify(arm, change)
    (wrong,) = verify("smoke", sample=4)
    assert wrong.startswith(f"{CELL} {arm}, episode {FIRST}: ")
    assert verify("smoke", sample=4, seed=1) == [wrong]


def test_verify_finds_a_table_that_was_edited_after_it_was_written(home):
    commit()
    falsify("teacher", 1e-6, signed=False)
    assert verify("smoke") == [f"{CELL}.csv is not the file that its sidecar describes"]
    assert main(["--profile", "smoke"]) == 1


def test_verify_says_in_a_sentence_what_is_lacking(home, capsys):
    assert main(["--profile", "quick"]) == 2
    assert "holds no evaluated cell; run `make all" in capsys.readouterr().err
    assert main(["--profile", "../quick"]) == 2
    assert capsys.readouterr().err.startswith(
        "verify: profile='../quick' is not known; use one of: smoke, quick, paper."
    )
    commit()
    corrector_file().unlink()
    assert main(["--profile", "smoke"]) == 2
    new_teacher(0)
    (paths.TEACHERS / f"{CELL}.safetensors").unlink()
    assert main(["--profile", "smoke"]) == 2
    assert capsys.readouterr().err.count("verify: ") == 2
