"""Audits, on a small repository with a history: code that does the same is shown to, and other code never passes."""

import json
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from lib.config import ConfigError
from lib.records.audit import Command
from tests.records.tiny import CELL, Repo, alive, wait_for

CELLS = f'["{CELL}", "walker-walk-1m-2"]'
JOBS = (f"one-{CELL}", "one-walker-walk-1m-2")
IGNORED = "data/\nbuild/\n__pycache__/\nstdout\nstderr\n"
SAME = ("lib/needed.py", "found = VALUE + offset\n    return found", "result = VALUE + offset\n    return result")
OTHER = ("lib/needed.py", "VALUE = 900.5", "VALUE = 900.6")

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


def git(repo, *words):
    options = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", *options, *words], cwd=repo.root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(repo, *edits):
    for edit in edits:
        repo.edit(*edit)
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "a change")
    return git(repo, "rev-parse", "HEAD")


def entries(repo):
    file = repo.root / "data/results/ledger.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def audit(repo, *options):
    done = repo(*options, module="audit")
    assert len(git(repo, "worktree", "list").splitlines()) == 1
    return done


def code(repo):
    return repo.record(repo.one)["run"]["components"]["code"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    repo = Repo.write(tmp_path_factory.mktemp("built"))
    repo.edit("lib/records/audit.py", "AUDITED += (", 'AUDITED = ("one", "two")  # (')
    profiles = repo.root / "lib/study/profiles.toml"
    profiles.write_text(profiles.read_text().replace(f'cells = ["{CELL}"]', f"cells = {CELLS}", 1))
    (repo.root / ".gitignore").write_text(IGNORED)
    git(repo, "init", "-q")
    head = commit(repo)
    done = repo("run", "--only", "one two")
    assert done.returncode == 0, done.stderr
    assert repo.record(repo.one)["commit"] == head
    return repo


@pytest.fixture
def repo(built, tmp_path):
    return built.clone(tmp_path / "clone")


def test_code_that_does_the_same_is_shown_to_and_other_code_is_not(repo):
    first = git(repo, "rev-parse", "HEAD")
    second = commit(repo, SAME)
    assert set(repo.status("--only", "one").values()) == {"code changed; under 1 min"}
    said = audit(repo)
    assert said.returncode == 0 and "1 kinds of results to replay, about 1 minutes" in said.stdout
    assert f"one of {first[:8]}: 1 of 1 kinds of rows equal\n" in said.stdout + said.stderr
    (entry,) = entries(repo)
    assert (entry["kind"], entry["stage"], entry["equal"], entry["difference"]) == ("audit", "one", True, "")
    assert (entry["commit"], entry["head"], entry["old"]) == (first, second, code(repo))
    assert entry["rows"][0] in JOBS and len(entry["rows"]) == 1
    assert entry["stands_for"] == [f"{CELL} {CELL}.csv", "walker-walk-1m-2 walker-walk-1m-2.csv"]
    assert set(repo.status("--only", "one two").values()) == {"fresh"}
    assert audit(repo).stdout == "nothing to audit\n"

    commit(repo, OTHER)
    assert "0 of 1 kinds of rows equal; first difference: " in audit(repo).stdout
    _, entry = entries(repo)
    assert entry["equal"] is False
    assert entry["difference"] == f"one/{entry['rows'][0][4:]}.csv, row 1, return: 900.5 and 900.6"
    assert set(repo.status("--only", "one").values()) == {"code changed; under 1 min"}
    assert audit(repo).stdout == "nothing to audit\n" and len(entries(repo)) == 2


def test_rows_and_stages_narrow_it_and_what_cannot_be_replayed_shows_nothing(repo):
    commit(repo, SAME, ("notebooks/two.ipynb", "folder = ROOT", "place = folder = ROOT"))
    said = audit(repo, "--stages", "one", "--rows", "2").stdout
    assert "1 kinds of results to replay, about 2 minutes" in said and "1 of 1 kinds of rows equal" in said
    assert [(entry["stage"], sorted(entry["rows"])) for entry in entries(repo)] == [("one", list(JOBS))]
    said = audit(repo).stdout  # `two` reads what `one` has made, which a tree of git does not have
    assert "1 kinds of results to replay" in said and "nothing shown: notebooks/two.ipynb of " in said
    assert "could not be replayed: lib.records.keys.ResultError: data/results/audit/one/" in said
    assert len(entries(repo)) == 1
    refused = audit(repo, "--stages", "plot-figure")
    assert refused.returncode == 2 and refused.stderr.startswith(
        "error: stage='plot-figure' is not known; use one of: one"
    )


def test_code_that_is_not_committed_is_refused(repo):
    repo.edit(*SAME)
    refused = audit(repo)
    sentence = "lib, notebooks or paper differ from the last commit; commit first: an audit is of commits."
    assert (refused.returncode, refused.stderr, entries(repo)) == (1, f"error: {sentence}\n", [])
    repo.edit("notebooks/one.ipynb", "episodes: int = 3", "episodes: int = 2")
    assert repo("run", "--only", "one").returncode == 0  # a result of code that no commit has
    commit(repo, OTHER)
    said = audit(repo).stdout
    assert f"nothing shown: one-{CELL} was made by code that was not committed; run it again.\n" in said
    assert entries(repo) == []


def test_ctrl_c_leaves_no_worktree(repo):
    (repo.root / "slow").touch()
    commit(repo, SAME)  # with `slow`: the tree of the first commit is quick, that of the second waits
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a job in the background ignores it
    command = repo.command(module="audit")
    with subprocess.Popen(command, cwd=repo.root, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        place = f"audit-of-{process.pid}-*"
        wait_for(lambda: [*Path(tempfile.gettempdir()).glob(f"{place}/*/pid")], seconds=200)
        (pid,) = Path(tempfile.gettempdir()).glob(f"{place}/*/pid")
        replaying = int(pid.read_text())
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.splitlines()[-1].startswith("stopped")
    assert len(git(repo, "worktree", "list").splitlines()) == 1
    assert not [*Path(tempfile.gettempdir()).glob(place)] and not alive(replaying)
    assert entries(repo) == []


@pytest.mark.parametrize("rows", [0, -1])
def test_an_audit_of_no_rows_is_refused(rows):
    """It would say "equal" of what nobody has compared."""
    with pytest.raises(ConfigError, match=f"rows={rows} must be at least 1"):
        Command(rows=rows)
