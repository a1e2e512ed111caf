"""What was found fresh needs no second look while no file has changed; one that has is seen, whatever its times say."""

import json
import os
import subprocess

import pytest

from lib.records import paths, settled
from tests.records.test_run import built, repo  # noqa: F401 - fixtures
from tests.records.tiny import Repo

WATCHED = ("lib/a.py", "lib/study/profiles.toml", "notebooks/01.ipynb", "paper/main.typ", "figures/plot.py")
WATCHED += ("data/results/smoke/one/a.csv", "data/results/smoke/one/a.csv.meta.json", "data/results/ledger.jsonl")
WATCHED += ("data/teachers/t/100.safetensors", "data/cache/teachers/a.pt", "data/returns.csv", "figures/smoke/a.svg")
UNWATCHED = ("lib/__pycache__/a.pyc", "data/results/smoke/one/.a.tmp.csv", "data/results/quick/a.csv")
UNWATCHED += ("figures/quick/a.svg", "data/cache/jobs/smoke/a.json", "README.md")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name, place in {"ROOT": "", "DATA": "data", "CACHE": "data/cache", "TEACHERS": "data/teachers"}.items():
        monkeypatch.setattr(paths, name, tmp_path / place)
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    for name in (*WATCHED, *UNWATCHED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    return tmp_path


def test_every_file_that_counts_is_watched_and_its_times_cannot_be_forged(tree):
    for name in WATCHED:
        before, about = settled.state("smoke"), (tree / name).stat()
        assert settled.state("smoke") == before
        (tree / name).write_text("two")  # of the same length
        os.utime(tree / name, ns=(about.st_atime_ns, about.st_mtime_ns))
        assert settled.state("smoke") != before, name
        before = settled.state("smoke")
        (tree / name).rename(tree / f"{name}.moved")
        assert settled.state("smoke") != before, name
    for name in UNWATCHED:
        before = settled.state("smoke")
        (tree / name).write_text("three")
        assert settled.state("smoke") == before, name


def test_settings_of_the_environment_count(tree, monkeypatch):
    before = settled.state("smoke")
    monkeypatch.setenv("SPECULATIVE_TDMPC2_TEACHERS", "/elsewhere")
    assert settled.state("smoke") != before


def test_what_is_remembered_is_of_one_state(tree):
    settled.remember("smoke", "all", "now")
    settled.remember("smoke", "pdf", "now")
    assert (settled.known("smoke", "all"), settled.known("smoke", "pdf")) == ("now", "now")
    settled.remember("smoke", "some", "later")
    assert (settled.known("smoke", "all"), settled.known("smoke", "some")) == ("", "later")
    settled.place("smoke").write_text("half a wo")
    assert settled.known("smoke", "some") == ""


def test_a_run_that_found_all_fresh_is_not_repeated_until_something_changes(repo):  # noqa: F811
    every = "".join(f"unchanged {out}\n" for out in Repo.outs)
    assert repo("run").stdout == every
    (repo.root / "rows.json").write_text(json.dumps(["arm a was never played"]))  # which only a look at rows sees
    assert repo("run").stdout == every
    assert "wrote" in repo("run", "--only", "one", "--again").stdout  # another question, and a changed result
    assert f"wrote {repo.one}" in repo("run").stdout


def test_after_a_run_that_made_something_nothing_is_looked_at_either(repo):  # noqa: F811
    repo.edit("figures/plot.py", "out.write_text", "text = out.write_text")
    assert f"wrote {repo.plot}" in repo("run").stdout
    (repo.root / "rows.json").write_text(json.dumps(["arm a was never played"]))
    assert "wrote" not in repo("run").stdout


BUILD = """
import sys
from pathlib import Path
if Path("broken").exists():
    sys.exit("paper: a number is missing")
Path("build/smoke").mkdir(parents=True, exist_ok=True)
Path("build/smoke/paper.pdf").write_text(str(sys.argv))
print("build/smoke/paper.pdf")
"""


def test_the_paper_is_built_when_something_has_changed(repo):  # noqa: F811
    (repo.root / "paper/build.py").write_text(BUILD)
    command = [*repo.command("run"), "--only", "plot-figure", "--pdf"]

    def last():
        done = subprocess.run(command, cwd=repo.root, capture_output=True, text=True)
        return done.stdout.splitlines()[-1:], done.stderr.splitlines()[-1:], done.returncode

    pdf = "build/smoke/paper.pdf"
    assert last() == ([pdf], [], 0) and last() == ([f"unchanged {pdf}"], [], 0)
    (repo.root / pdf).write_text("by hand")
    assert last() == ([pdf], [], 0) and "by hand" not in (repo.root / pdf).read_text()
    (repo.root / repo.two).touch()
    (repo.root / "broken").touch()
    assert last()[1:] == (["error: the paper was not built; its error is above."], 1)
