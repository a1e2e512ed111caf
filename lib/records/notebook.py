"""Notebooks from outside: their parameters and code as data, and running one headless with this very interpreter."""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lib.files import unwritable
from lib.records.ending import child, start_quickly
from lib.records.keys import shown
from lib.records.paths import ROOT
from lib.records.store import write_json


class RunError(RuntimeError):
    """The run cannot start or has failed; the message says why and `code` is the exit status."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def read_parameters(path: Path, given: dict[str, str]) -> tuple[dict, dict]:
    """All parameters of a notebook, defaults included, and the given ones, as typed values.

    Raises `RunError` with exit status 2 for a parameter that the notebook does not have or a value of the wrong type.
    """
    declared = _declared(path, path.stat().st_mtime_ns if path.is_file() else 0)
    defaults = {name: default for name, (_, default) in declared.items()}
    kinds = {name: kind for name, (kind, _) in declared.items()}
    valid = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"
    values = {}
    for name, text in given.items():
        if name not in declared:
            raise RunError(f"{shown(path)} has no parameter {name!r}; its parameters are: {valid}.", 2)
        try:
            values[name] = typed(text, kinds[name])
        except ValueError:
            message = (
                f"Parameter {name} of {shown(path)} must be {kinds[name]}, not {text!r}; its parameters are: {valid}."
            )
            raise RunError(message, 2) from None
    return defaults | values, values


@functools.lru_cache(maxsize=64)
def _declared(path: Path, _changed: int) -> dict[str, tuple[str, object]]:
    """Parameter → its type and default, as papermill has them, which takes seconds to import."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
        text = "".join(tagged[0]["source"]) if tagged else ""
        statements = ast.parse(text).body
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError):
        raise RunError(f"{shown(path)} is not a notebook; restore it from git.", 2) from None
    found = {}
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if not isinstance(targets[0], ast.Name) or getattr(statement, "value", None) is None:
            continue
        try:
            default = ast.literal_eval(statement.value)
        except (ValueError, SyntaxError):  # computed from something: its text stands for it
            default = ast.get_source_segment(text, statement.value)
        kind = getattr(statement, "annotation", None)
        kind = ast.unparse(kind).strip("'\"") if kind else type(default).__name__
        found[targets[0].id] = kind, float(default) if kind == "float" and type(default) is int else default
    return found


def typed(text: str, kind: str):
    """`text` as a value of the type "int", "float", "bool" or "str". Raises `ValueError` if it is not one."""
    if kind == "str":
        return text
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in ("int", "float") and math.isfinite(value := int(text) if kind == "int" else float(text)):
        return value
    raise ValueError(text)


def execute(source: Path, target: Path, parameters: dict) -> None:
    """Run the notebook `source` in the folder where this process is, so that files are found where they were named,
    into `target`; its stderr (progress bars) reaches the terminal.

    Raises `RunError` with the last line of the error; `target` holds the traceback.
    """
    with tempfile.TemporaryDirectory(prefix="lib-run-") as folder:
        for name in ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
            os.environ[name] = folder
        os.environ["PYTHONPATH"] = python_path()
        start_quickly()
        try:
            import papermill
            from ipykernel.kernelspec import get_kernel_dict
        except ImportError as error:
            raise RunError(f"{error.name} is missing in {sys.executable}; run `make`, which sets up .venv.") from None
        # A registered "python3" kernel may belong to another environment, and HOME may not be writable.
        spec = get_kernel_dict()
        words = spec["argv"][spec["argv"].index("-m") + 1 :]
        spec["argv"] = child(*words, "--log-level=50")  # else Ctrl-C prints the kernel's distress
        write_json(Path(folder) / "kernels" / "python3" / "kernel.json", spec)
        options = {"kernel_name": "python3", "language": "python", "coalesce_streams": True}
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            papermill.execute_notebook(
                source, target, parameters, progress_bar=False, stderr_file=sys.stderr, **options
            )
        except papermill.PapermillExecutionError as error:
            last = f"{error.ename}: {error.evalue}".strip().splitlines()[-1]
            raise RunError(f"notebook failed: {last}; the traceback is in {shown(target)}") from None
        except Exception as error:  # the kernel could not start, or died: there is no traceback to point at
            if why := unwritable(error, target):
                raise RunError(f"{shown(target)} cannot be written: {why}.") from None
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise RunError(f"notebook stopped: {last[0]}; what it did until then is in {shown(target)}") from None


def python_path() -> str:
    """PYTHONPATH that finds this repository's `lib` first, installed or not."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


@contextlib.contextmanager
def at_home() -> Iterator[None]:
    """Lend a home folder to whoever has none, as a container's user without a name: Jupyter and Altair ask for one."""
    with contextlib.ExitStack() as stack:
        try:
            Path.home()
        except RuntimeError:
            os.environ["HOME"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="lib-home-"))
            stack.callback(os.environ.pop, "HOME")
        yield
