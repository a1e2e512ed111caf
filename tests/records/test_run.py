"""The runner, on a small copy of the repository: what reruns, what does not, and what a failure leaves behind."""

import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lib.records import run
from lib.records.fingerprint import Code
from lib.records.keys import content_hash
from lib.records.pipeline import STAGES
from tests.records.tiny import CELL, Repo, alive, mounted, needs_mounts, wait_for

ROOTS = ("notebooks/one.ipynb", "lib.gates:Drift")
FRESH = dict.fromkeys([*Repo.outs[:2], Repo.kept, *Repo.outs[2:]], "fresh")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    repo = Repo.write(tmp_path_factory.mktemp("built"))
    # An unwritable HOME and a "python3" kernel that belongs to someone else must not matter.
    kernel = repo.root / "jupyter/kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/nowhere/python"], "display_name": "other", "language": "python"}))
    environment = {"PYTHONPATH": "", "HOME": "/nonexistent", "JUPYTER_PATH": str(repo.root / "jupyter")}
    command = {"args": repo.command("run"), "cwd": repo.root, "env": os.environ | environment}
    done = subprocess.run(**command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"wrote {out}\n" for out in Repo.outs)
    return repo


@pytest.fixture
def repo(built, tmp_path):
    return built.clone(tmp_path / "clone")


def test_a_clone_reruns_nothing(repo):
    before = repo.results()
    assert repo("run").stdout == "".join(f"unchanged {out}\n" for out in Repo.outs)
    assert repo.status() == FRESH
    assert repo("warn").stdout == f"unchanged {repo.plot}\n"
    assert repo.results() == before
    assert [(repo.root / f"build/smoke/{name}.txt").read_text() for name in ("status", "stale")] == ["", ""]


def test_the_record_beside_a_result_says_how_it_was_made(repo):
    run = repo.record(repo.one)["run"]
    given = {"profile": "smoke", "task": "walker-walk", "model_size": "1m", "seed": 1}
    assert run["components"]["parameters"] == given | {"episodes": 3, "lr": 1.0, "flag": False}
    assert run["components"]["code"] == Code(repo.root).fingerprint(*ROOTS) == run["key"].split("-")[0]
    assert list(run["components"]["settings"]) == ["epochs"] and run["components"]["inputs"] == {}
    assert (run["stage"], run["source"]) == ("one", "notebooks/one.ipynb") and run["minutes"] < 1
    assert (repo.root / f"build/smoke/one-{CELL}.ipynb").is_file()
    assert list(repo.record(repo.two)["run"]["components"]["inputs"]) == [repo.one]
    assert repo.record(repo.plot)["run"]["stage"] == "plot-figure"
    assert "run" not in repo.record(repo.kept)


@pytest.mark.parametrize(
    "edits",
    [
        [("notebooks/one.ipynb", "# A question", "# Another question")],
        [("notebooks/one.ipynb", "# how many", "# number of episodes")],
        [("notebooks/one.ipynb", '\\nimport os\\n', '\\nimport os  # why\\n\\n')],
        [("lib/needed.py", "Old words", "New words"), ("lib/needed.py", "# a comment", "# another")],
        [("lib/needed.py", "The return of", "What came of")],
        [("lib/needed.py", "return 1", "return 2"), ("lib/needed.py", "import lib.config\n", "")],
        [("lib/needed.py", "def value", "def reward"), ("notebooks/one.ipynb", "needed.value", "needed.reward"),
         ("figures/plot.py", "needed.value", "needed.reward")],
        [("lib/gates.py", 'kind = "other"', 'kind = "third"')],
        [("lib/study/profiles.toml", "collect_episodes = 2\n", "collect_episodes = 3\n")],
        [("lib/study/profiles.py", "def _frozen(value):\n", "def _frozen(value):\n    pass\n")],
        [("lib/records/store.py", "    writer(temporary)\n", "    done = writer(temporary)\n")],
        [("lib/records/pipeline.py", "PARAMETERS = \"\", {}", "PARAMETERS = \"\", {'episodes': '3', 'lr': '1.0'}")],
    ],
)  # fmt: skip
def test_edits_that_rerun_nothing(repo, edits):
    for edit in edits:
        repo.edit(*edit)
    assert repo.status() == FRESH


@pytest.mark.parametrize(
    ("file", "old", "new", "reason", "others"),
    [
        ("notebooks/one.ipynb", "range(episodes)", "range(episodes + 1)", "code changed", "two plot"),
        ("notebooks/one.ipynb", "episodes: int = 3", "episodes: int = 5", "parameter episodes 3 → 5", "two plot"),
        ("lib/needed.py", "900.5", "900.6", "code changed", "two plot"),
        ("lib/needed.py", "offset=0", "offset=1", "code changed", "two plot"),
        ("lib/gates.py", 'kind = "drift"', 'kind = "other drift"', "code changed", "two plot"),
        ("lib/study/profiles.toml", "epochs = 2\n", "epochs = 4\n", "the profile's epochs changed", "two plot"),
        ("lib/records/pipeline.py", "PARAMETERS = \"\", {}", "PARAMETERS = \"\", {'episodes': '4'}",
         "parameter episodes 3 → 4", "two plot"),
        ("lib/records/pipeline.py", "ONE = dict(", "ONE = dict(needs=lambda scope, cell: [PUBLIC[0]], ",
         "input data/official_returns.csv is new", "two plot"),
        (Repo.one, "900.5\n", "900.7\n", "file changed by hand or half-written", "two plot"),
        ("notebooks/two.ipynb", "len(x)", "len(x) + 1", "", "two plot"),
        ("figures/plot.py", "<svg/>", "<svg></svg>", "", "plot"),
        ("figures/charts.py", "LOOKS = 1", "LOOKS = 2", "", "plot"),
    ],
)  # fmt: skip
def test_edits_that_make_a_result_stale_and_why(repo, file, old, new, reason, others):
    if file == Repo.one:  # the last of three rows
        (repo.root / file).write_text((repo.root / file).read_text().replace("2,900.5", "2,900.7"))
    else:
        repo.edit(file, old, new)
    before, status = repo.results(), repo.status()
    stale = {result for result, why in status.items() if why != "fresh"}
    assert stale == {getattr(Repo, name) for name in [*others.split(), *(["one"] if reason else [])]}
    if reason:
        assert status[repo.one] == f"{reason}; under 1 min"
        assert f"input {repo.one} " in status[repo.two]
    listed = (repo.root / "build/smoke/status.txt").read_text()
    assert listed == "".join(f"{result} ({why})\n" for result, why in status.items() if why != "fresh")
    assert repo.results() == before


def test_stale_is_what_runs_and_the_cascade_stops_where_the_content_is_the_same(repo):
    repo.edit("notebooks/one.ipynb", "range(episodes)", "range(episodes + 0)")
    old = (repo.root / repo.one).read_bytes()
    unchanged = [f"unchanged {out}\n" for out in Repo.outs[1:]]
    assert repo("run").stdout == "".join([f"wrote {repo.one}\n", *unchanged])
    assert (repo.root / repo.one).read_bytes() != old  # its minutes column
    assert repo.status() == FRESH


def test_a_result_that_comes_out_the_same_is_of_the_new_code(repo):
    repo.edit("figures/plot.py", "out.write_text", "text = out.write_text")
    assert repo("run", "--only", "plot-figure").stdout == f"wrote {repo.plot}\n"
    assert repo("run", "--only", "plot-figure").stdout == f"unchanged {repo.plot}\n"
    assert repo("run", "--only", "plot-figure", "--again").stdout == f"wrote {repo.plot}\n"


@pytest.mark.parametrize("equal", [True, False])
def test_other_code_is_fresh_where_the_ledger_shows_it_to_do_the_same(repo, equal):
    before = Code(repo.root).fingerprint(*ROOTS)
    repo.edit("lib/needed.py", "found = VALUE + offset\n    return found", "return VALUE + offset")
    after = Code(repo.root).fingerprint(*ROOTS)
    assert before != after and repo.status("--only", "one") == {repo.one: "code changed; under 1 min"}
    repo.append({"kind": "audit", "stage": "one", "old": before, "new": after, "equal": equal})
    assert repo.status("--only", "one") == {repo.one: "fresh" if equal else "code changed; under 1 min"}
    if equal:
        assert repo("run", "--only", "one").stdout == f"unchanged {repo.one}\n"
        repo.edit("notebooks/one.ipynb", "episodes: int = 3", "episodes: int = 5")
        assert repo.status("--only", "one") == {repo.one: "parameter episodes 3 → 5; under 1 min"}


def test_a_result_of_the_first_edition_is_what_the_ledger_adopted_it_as(repo):
    about = repo.record(repo.one)
    run, about["run"] = about["run"], {"key": "0123", "minutes": 3.0}
    (repo.root / f"{repo.one}.meta.json").write_text(json.dumps(about))
    assert repo.status("--only", "one") == {repo.one: "made by hand or by a run that did not finish"}
    entry = {"kind": "adopted", "result": repo.one, "commit": "abc", "run": run, "keys": {"0123": run["key"]}}
    repo.append(entry | {"content": content_hash(repo.root / repo.one)})
    assert repo.status("--only", "one") == {repo.one: "fresh"}
    repo.edit("lib/needed.py", "900.5", "900.6")
    assert repo.status("--only", "one") == {repo.one: "code changed; about 3 min"}
    repo.append(entry | {"content": "another"})
    assert repo.status("--only", "one") == {repo.one: "made by hand or by a run that did not finish"}


def test_a_broken_ledger_is_one_sentence(repo):
    (repo.root / "data/results/ledger.jsonl").write_text("{}}\n")
    broken = repo("status")
    assert broken.returncode == 1
    assert broken.stderr == "error: data/results/ledger.jsonl:1 is not JSON; restore the ledger from git.\n"


def test_never_built_and_made_by_hand(repo):
    (repo.root / f"{repo.one}.meta.json").unlink()
    assert repo.status("--only", "one") == {repo.one: "made by hand or by a run that did not finish"}
    (repo.root / repo.one).unlink()
    status = repo.status()
    assert status[repo.one] == "never built" and f"input {repo.one} is missing" in status[repo.two]


def test_what_has_a_key_of_its_own_is_made_where_it_lacks(repo):
    (repo.root / repo.kept).write_text("by hand")  # who wrote it judges it
    assert repo.status() == FRESH
    (repo.root / repo.kept).unlink()
    assert repo.status() == FRESH | {repo.kept: "never built", repo.plot: "fresh"}
    assert f"wrote {repo.two}\n" in repo("run").stdout and (repo.root / repo.kept).read_text() == "kept"


def test_rows_with_keys_of_their_own_make_their_table_stale(repo):
    (repo.root / "rows.json").write_text(json.dumps(["", "arm a was never played", "arm b has 1 of 2 episodes"]))
    assert repo.status()[repo.one] == "arm a was never played, arm b has 1 of 2 episodes; under 1 min"
    (repo.root / "rows.json").write_text(json.dumps([f"arm {i} was never played" for i in range(5)]))
    assert repo.status()[repo.one].endswith("arm 2 was never played, and 2 more; under 1 min")


def test_timings_are_measured_once_and_say_how_old_they_are(repo):
    repo.edit("paper/timed.py", "1.5", "2.5")
    said = repo("status", "--only", "timed").stdout
    assert said.startswith(f"fresh: {repo.timed} (timed 20") and said.endswith("before commits were kept)\n")
    (repo.root / f"{repo.timed}.meta.json").unlink()
    assert "(timed some day, " in repo("status", "--only", "timed").stdout
    (repo.root / repo.timed).unlink()
    assert repo.status("--only", "timed") == {repo.timed: "never built"}


def test_warn_draws_what_can_be_drawn_and_lists_the_rest(repo):
    repo.edit("lib/needed.py", "900.5", "900.6")
    warned = repo("warn")
    assert warned.stdout.startswith(f"stale: {repo.one} (") and warned.stdout.endswith(f"wrote {repo.plot}\n")
    listed = (repo.root / "build/smoke/stale.txt").read_text()
    assert listed.startswith(f"{repo.one} (code changed; under 1 min)\n{repo.two} (input {repo.one} is stale;")
    (repo.root / repo.two).unlink()
    assert f"stale: {repo.plot} (input {repo.two} " in repo("warn").stdout


def test_what_is_made_of_tables_alone_is_made_anew_before_a_paper():
    """So a table that was changed, and bears out a sentence no longer, is found by `make paper` and `make site`."""
    light = [stage for stage in STAGES if run.of_tables(stage.name)]
    assert {"summary", "claims", "deadlines-summary", "pareto-figure"} < {stage.name for stage in light}
    assert all(stage.source.startswith(("paper/", "figures/")) and stage.each is None for stage in light)
    assert not any(stage.timing or stage.alone for stage in light)


def test_cells_and_stages_narrow_what_is_looked_at(repo):
    other = "data/results/smoke/one/walker-walk-5m-2.csv"
    assert repo.status("--only", "one timed") == {repo.one: "fresh", repo.timed: "fresh"}
    cells = ("--cells", f"{CELL} walker-walk-5m-2")
    assert repo.status("--only", "one", *cells) == {repo.one: "fresh", other: "never built"}
    assert repo("run", "--only", "one", *cells).stdout == f"unchanged {repo.one}\nwrote {other}\n"
    assert repo.record(other)["run"]["components"]["parameters"]["model_size"] == "5m"


def test_a_failing_cell_leaves_the_earlier_result_and_names_the_traceback(repo):
    before = repo.results()
    repo.edit("lib/records/pipeline.py", 'PARAMETERS = "", {}', "PARAMETERS = \"\", {'episodes': '12'}")
    failed = repo("run")
    assert failed.returncode == 1 and failed.stdout == f"unchanged {repo.timed}\n"
    evidence = f"build/smoke/one-{CELL}.ipynb"
    why = f"notebook failed: AssertionError: too many episodes; the traceback is in {evidence}"
    message = f"error: one-{CELL} failed ({why}), so two and plot-figure were not begun."
    assert failed.stderr.splitlines()[-1] == message
    assert repo.results() == before
    assert "too many episodes" in (repo.root / evidence).read_text().split('"traceback"')[1]


def test_a_failing_script_is_named(repo):
    repo.edit("lib/needed.py", "900.5", "-900.5")
    failed = repo("run", "--only", "plot-figure")
    assert failed.returncode == 1 and "a negative return" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: script failed: figures/plot.py ended with exit status 1")


def test_a_result_that_is_not_written_is_an_error(repo):
    before = repo.results()
    repo.edit("lib/records/pipeline.py", 'MORE, PARAMETERS = ""', 'MORE, PARAMETERS = "other"')
    absent = repo("run")
    assert absent.returncode == 1 and "did not write data/results/smoke/one/other.csv; see build/" in absent.stderr
    assert repo.results() == before


@pytest.mark.parametrize("text", ["[1]", '"x"', '{"run": null}', '{"run": {"stage": "one", "key": "a-b"}}'])
def test_a_damaged_record_makes_its_result_stale_and_the_next_run_mends_it(repo, text):
    (repo.root / f"{repo.one}.meta.json").write_text(text)
    assert repo.status("--only", "one") == {repo.one: "made by hand or by a run that did not finish"}
    assert repo("run", "--only", "one").stdout == f"wrote {repo.one}\n"
    assert repo.record(repo.one)["run"]["stage"] == "one"


NAMELESS = """
import pwd

def unknown(*about):
    raise KeyError("uid not found")

pwd.getpwuid = pwd.getpwnam = unknown
"""


def test_a_user_without_a_name_and_a_home_can_run(repo):
    (repo.root / "nameless").mkdir()
    (repo.root / "nameless/sitecustomize.py").write_text(NAMELESS)  # in the kernel's process too
    repo.edit("notebooks/one.ipynb", "import lib.needed", "from pathlib import Path\\nPath.home()\\nimport lib.needed")
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")}
    environment["PYTHONPATH"] = str(repo.root / "nameless")
    command = [*repo.command("run"), "--only", "one"]
    done = subprocess.run(command, cwd=repo.root, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, f"wrote {repo.one}\n"), done.stderr


@pytest.mark.parametrize("place", ["data/results/smoke/one", "build/smoke"])
def test_a_folder_that_cannot_be_written_to_is_said_before_anything_runs(repo, place, monkeypatch, capsys):
    """Root may write anywhere: the runner is told that it may not."""
    before = repo.results()
    repo.edit("notebooks/one.ipynb", "range(episodes)", "range(episodes + 1)")
    (repo.root / "lib/__init__.py").write_text(REFUSE.format(place=repo.root / place))
    refused = repo("run", "--only", "one")
    assert refused.returncode == 1 and refused.stdout == "" and refused.stderr.count("\n") == 1
    assert f"cannot be written: {place} is read-only; work in a copy elsewhere.\n" in refused.stderr
    assert repo.results() == before


REFUSE = """
import os
may = os.access
os.access = lambda path, mode, **more: False if str(path) == "{place}" and mode == os.W_OK else may(path, mode, **more)
"""


@needs_mounts
@pytest.mark.slow
def test_a_read_only_checkout_says_so_and_can_be_asked_what_is_stale(repo):
    def read_only(verb):
        bound = mounted("--bind", "-o", "ro", str(repo.root), str(repo.root))
        command = [*bound, "env", "-C", str(repo.root), *repo.command(verb)]  # into the mount, not what it covers
        return subprocess.run(command, cwd="/", capture_output=True, text=True)

    unchanged = read_only("run")
    assert unchanged.returncode == 0 and unchanged.stdout.startswith(f"unchanged {repo.one}\n"), unchanged.stderr
    repo.edit("lib/needed.py", "900.5", "900.6")
    said, refused, warned = map(read_only, ("status", "run", "warn"))
    assert said.returncode == 0 and said.stdout.startswith(f"stale: {repo.one} (code changed;")
    assert refused.returncode == warned.returncode == 1 and "Traceback" not in refused.stderr + warned.stderr
    assert refused.stderr.splitlines()[-1] == (
        f"error: {repo.one} cannot be written: data/results/smoke/one is read-only; work in a copy elsewhere."
    )
    assert "error: figures/smoke/plot.svg cannot be written: figures/smoke is read-only" in warned.stderr


@needs_mounts
@pytest.mark.slow
def test_a_disk_that_is_full_under_build_is_one_sentence_that_names_the_file(repo):
    before = repo.results()
    repo.edit("notebooks/one.ipynb", "import time", "print('words ' * 10 + '\\\\n' * 10**5)\\nimport time")
    bound = mounted("-t", "tmpfs", "-o", "size=100k", "tmpfs", str(repo.root / "build"))
    done = subprocess.run([*bound, *repo.command("run")], cwd=repo.root, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"error: build/smoke/one-{CELL}.ipynb cannot be written: there is no space left on the disk; make room, then "
        "run this again."
    )
    assert repo.results() == before


def test_what_cannot_be_put_back_does_not_hide_why_the_run_failed(tmp_path, monkeypatch, capsys):
    changed, new, same = (tmp_path / name for name in ("changed.csv", "new.csv", "same.csv"))
    for file in (changed, new, same):
        file.write_text("now")
    kept = {changed: b"before", new: None, same: b"now"}

    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    with monkeypatch.context() as patched:
        for name in ("mkdir", "unlink"):
            patched.setattr(Path, name, refuse)
        run.restore(kept)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" is not as it was before, as it could not be put back: ")[0] for line in said] == [
        str(changed), str(new)
    ]  # fmt: skip
    run.restore(kept)
    assert changed.read_text() == "before" and not new.exists() and capsys.readouterr().err == ""


def test_an_error_of_the_disk_is_one_sentence(capsys):
    def work():
        raise OSError(errno.ENOSPC, "No space left on device", "data/results/ledger.jsonl")

    assert run.guarded(work) == 1
    assert capsys.readouterr().err == "error: data/results/ledger.jsonl: No space left on device\n"


def in_the_middle(repo, command=(), **options):
    """A run, or a `command` that starts one, when it has written its result and waits."""
    (repo.root / "slow").touch()
    repo.edit("notebooks/one.ipynb", "episodes: int = 3", "episodes: int = 4")
    command = command or repo.command("run")
    process = subprocess.Popen(command, cwd=repo.root, stderr=subprocess.PIPE, text=True, **options)
    wait_for(lambda: (repo.root / "pid").exists() and (repo.root / "pid").read_text())
    return process


def test_kill_9_in_the_middle_leaves_whole_files_and_the_next_run_succeeds(repo):
    before = repo.results()
    with in_the_middle(repo) as process:
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not alive(int((repo.root / "pid").read_text())))  # no kernel is left behind
    assert (repo.root / repo.one).read_text().count("900.5") == 4
    (repo.root / "slow").unlink()
    done = repo("run")
    assert done.returncode == 0, done.stderr
    assert repo.results().keys() == before.keys() and repo.status() == FRESH


def test_ctrl_c_restores_the_earlier_result(repo):
    before = repo.results()
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a job in the background ignores it
    with in_the_middle(repo, preexec_fn=heard) as process:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped; the earlier results are as they were." and "Traceback" not in said
    assert repo.results() == before


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"model_szie": "5m"}, "no parameter 'model_szie'; its parameters are: profile (str), task (str)"),
        ({"episodes": "1e6"}, "Parameter episodes of notebooks/one.ipynb must be int, not '1e6'"),
        ({"flag": "maybe"}, "must be bool, not 'maybe'"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(repo, parameters, sentence):
    repo.edit("lib/records/pipeline.py", 'PARAMETERS = "", {}', f'PARAMETERS = "", {parameters}')
    refused = repo("run")
    assert refused.returncode == 2 and sentence in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--cells", "walker"), "'walker' is not a cell; write <task>-<size>-<seed>"),
        (("--only", "won"), "stage='won' is not known; use one of: one, two, plot-figure, timed. Did you mean"),
        (("--cells", "../../x-1m-1"), "'../../x-1m-1' is not a cell; write <task>-<size>-<seed>"),
        (("--cells", "../../x-1m-1", "--only", "plot-figure"), "'../../x-1m-1' is not a cell"),
        (("--profile", ""), "profile='' is not known"),
        (("--profile", "../../x"), "profile='../../x' is not known; use one of: smoke, quick, paper."),
        (("--profile", "qick"), "profile='qick' is not known; use one of: smoke, quick, paper. Did you mean quick?"),
    ],
)
def test_wrong_options_are_one_sentence(repo, options, sentence):
    refused = repo("run", *options)
    assert refused.returncode == 2 and sentence in refused.stderr and refused.stderr.count("\n") == 1


def test_a_missing_need_and_a_missing_notebook_are_one_sentence(repo):
    for file in (repo.two, f"{repo.two}.meta.json", repo.one):
        (repo.root / file).unlink()
    missing = repo("run", "--only", "two")
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1
    assert f"{repo.one}, which notebooks/two.ipynb needs, is missing; run `make all PROFILE=smoke` or" in missing.stderr
    (repo.root / "notebooks/one.ipynb").unlink()
    gone = repo("status", "--only", "one")
    assert gone.returncode == 2 and gone.stderr.count("\n") == 1 and "notebooks/one.ipynb" in gone.stderr
