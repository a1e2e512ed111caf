"""An environment that make did not install is compared with the lock, in what results depend on."""

from importlib import metadata

import pytest

from lib.records import environment
from lib.records.environment import COMPARED, locked, main


@pytest.fixture
def installed(monkeypatch):
    """Versions that are installed, by name: those of the lock, unless a test changes them."""
    versions = locked()

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(environment.sys, "executable", "/some/python")
    return versions


def test_the_lock_names_all_that_is_compared():
    assert sorted(locked()) == sorted(COMPARED) and all(version[0].isdigit() for version in locked().values())


def test_nothing_is_said_of_what_is_the_same_of_any_build(installed, capsys):
    installed["torch"] += "+cpu"
    assert main() == 0 and capsys.readouterr() == ("", "")


def test_what_differs_is_one_line_and_no_error(installed, capsys):
    wanted = dict(installed)
    installed |= {"numpy": "1.26.4", "torch": "2.4.0+cu121"}
    assert main() == 0
    assert capsys.readouterr().err == (
        "warning: /some/python has other versions than requirements.lock (in brackets): "
        f"numpy 1.26.4 ({wanted['numpy']}), torch 2.4.0 ({wanted['torch']}); numbers may differ from the committed "
        "ones.\n"
    )


def test_what_is_missing_is_an_error_that_says_what_to_do(installed, capsys):
    wanted = dict(installed)
    installed["numpy"] = "1.26.4"
    del installed["papermill"], installed["dm_control"]
    assert main() == 1
    assert capsys.readouterr().err == (
        f"error: /some/python has no dm_control {wanted['dm_control']}, papermill {wanted['papermill']}; install "
        "requirements.lock there, or leave PYTHON= out, for an environment of make's own.\n"
    )
