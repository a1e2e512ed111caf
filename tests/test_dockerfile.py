"""The Dockerfile installs what runs: its RUN lines, executed in a clean folder with an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from lib.records.paths import ROOT

LINES = (ROOT / "Dockerfile").read_text().splitlines()
RUNS = [line.removeprefix("RUN ") for line in LINES if line.startswith("RUN ")]
ARGS = dict(line.removeprefix("ARG ").split("=", 1) for line in LINES if line.startswith("ARG "))
PYPI = "https://pypi.org/simple"  # which the Dockerfile's comment gives for CUDA


def test_it_is_about_ten_lines_and_installs_the_lock():
    code = [line for line in LINES if line and not line.startswith("#")]
    assert len(code) <= 12 and set(ARGS) == {"TORCH"}
    assert any(re.search(r"pip install .*\$TORCH -r requirements\.lock", line) for line in RUNS)


@pytest.mark.slow
def test_its_run_lines_make_an_environment_in_which_the_library_works(tmp_path):
    """The packages of Debian are left to the image. Where torch's own index does not answer, PyPI is asked: pip would
    try it five times for every package. An address that answers with an error is wrong, and fails."""
    folder = tmp_path / "clean"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "build", "cache", "data"))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    try:
        urllib.request.urlopen(f"{ARGS['TORCH']}/", timeout=10).close()
        arguments = ARGS
    except urllib.error.HTTPError:
        raise
    except OSError:
        arguments = {"TORCH": PYPI}
    environment = os.environ | arguments | {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "PYTHONPATH": ""}
    for line in (line for line in RUNS if not line.startswith("apt-get")):
        done = subprocess.run(["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
        if re.search("Temporary failure|Network is unreachable|Could not find a version|No matching", done.stderr):
            pytest.skip(f"packages cannot be had here: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    words = ["python", "-c", "import lib, torch, dm_control, figures.demo; print(lib.__file__)"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == str(folder / "lib/__init__.py"), done.stderr
