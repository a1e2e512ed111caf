"""Keys: sha256 of what files and code say, so that nothing reruns unless something it depends on has changed.

    key = combine(module_key("lib.study.distillation"), settings, content_hash(teacher))

Times of files never count: git does not keep them. Comments, docstrings, layout and timing columns do not count either.
`lib.records.store` hands these names on, so that result files and their keys come from one import.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import hashlib
import json
import re
from pathlib import Path

from lib.records.paths import ROOT

TIMING = re.compile(r"minutes|seconds|.*(_ms|_minutes|_seconds|_per_s)")  # columns that differ between equal runs

# Modules whose effect reaches a result only through values that are part of its key anyway (settings, weights): keys
# of costly artefacts leave them out, so that a new profile or a new error message does not repeat hours of work.
SETTINGS_MODULES = tuple(
    f"lib.{name}"
    for name in (
        "config", "study.cells", "study.profiles", "records.paths", "records.keys", "records.store", "records.seeds",
        "weights.native", "weights.names", "weights.official", "teachers.config",
    )
)  # fmt: skip


class ResultError(RuntimeError):
    """A result file is missing, damaged or cannot be written; the message says which and what to do."""


def shown(path: str | Path) -> str:
    """A path as it is printed and keyed: relative to the repository, with forward slashes, wherever possible."""
    path = Path(path).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


# ----------------------------------------------------------------------------------------------- hashes of content


def file_hash(path: str | Path) -> str:
    """sha256 of the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: str | Path) -> str:
    """sha256 of what a file says: its bytes, except that a CSV's timing columns are left out (see `TIMING`)."""
    if Path(path).suffix != ".csv":
        return file_hash(path)
    digest = hashlib.sha256()
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        timed = {index for index, name in enumerate(header) if TIMING.fullmatch(name)}
        for row in [header, *rows]:
            kept = [cell for index, cell in enumerate(row) if index not in timed]
            digest.update(json.dumps(kept).encode() + b"\n")
    return digest.hexdigest()


def combine(*parts) -> str:
    """One sha256 for JSON-like parts (dataclasses, paths, numpy scalars too); the order of dict keys is immaterial."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=plain)
    return hashlib.sha256(text.encode()).hexdigest()


# -------------------------------------------------------------------------------------------------- hashes of code


def code_hash(source: str) -> str:
    """sha256 of what Python code does: comments, docstrings and layout never count; the same on Python 3.11 to 3.14.

    Text that does not parse (a cell with magics, say) is hashed as it stands.
    """
    try:
        text = _canonical(ast.parse(source))
    except SyntaxError:
        text = source
    return hashlib.sha256(text.encode()).hexdigest()


def import_closure(source: str) -> list[Path]:
    """Files of `lib` that running `source` can load by import statements, also inside functions; sorted by name."""
    found: set[Path] = set()
    pending = [source]
    while pending:
        for name in _imported(pending.pop()):
            file = ROOT / (name.replace(".", "/") + ".py")
            if file.is_file() and file not in found:
                found.add(file)
                pending.append(file.read_text(encoding="utf-8"))
    return sorted(found)


def code_hashes(files: list[Path]) -> dict[str, str]:
    """`code_hash` of each file, by its name relative to the repository."""
    return {shown(file): code_hash(file.read_text(encoding="utf-8")) for file in files}


def module_key(*modules: str, without: tuple[str, ...] = ()) -> str:
    """One key for modules such as "lib.planner" and everything of `lib` that they import, `without` some of it.

    Raises `ResultError` for a module that does not exist.
    """
    files = set()
    for name in modules:
        file = ROOT / (name.replace(".", "/") + ".py")
        if not file.is_file():
            raise ResultError(f"There is no module {name!r} to take a key of; write it like 'lib.planner'.")
        files |= {file, *import_closure(f"import {name}")}
    return combine(code_hashes(sorted(f for f in files if shown(f)[:-3].replace("/", ".") not in without)))


def _imported(source: str) -> set[str]:
    """Dotted names in lib that `source` imports directly."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        try:  # IPython's %magic, !command and help? lines are not Python, but what stands around them is
            tree = ast.parse(re.sub(r"(?m)^([ \t]*)(%.*|!.*|.*\?)$", r"\1pass", source))
        except SyntaxError:
            return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["lib" if node.level else "", node.module]))
            names.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return {name for name in names if name.startswith("lib.")}


def _canonical(node) -> str:
    """Node types and non-empty fields. `ast.dump` and `ast.unparse` will not do: they differ between Pythons."""
    if isinstance(node, list):
        return "[" + ",".join([_canonical(item) for item in node if not _is_text(item)]) + "]"
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__}:{node.value!r}"
    if isinstance(node, ast.JoinedStr):
        return f"JoinedStr({','.join(_string_parts(node.values))})"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or value == [] or name in ("ctx", "kind", "type_comment", "type_ignores"):
            continue
        if name == "format_spec" and not _string_parts(value.values):
            continue
        fields.append(f"{name}={_canonical(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_text(node) -> bool:
    """A statement that is only a string: a docstring, which does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _string_parts(values: list) -> list[str]:
    """Parts of an f-string, neighbouring texts joined and empty ones gone: Python 3.11 and 3.12 split differently."""
    parts: list = []
    for value in values:
        if isinstance(value, ast.Constant) and parts and isinstance(parts[-1], str):
            parts[-1] += value.value
        else:
            parts.append(value.value if isinstance(value, ast.Constant) else value)
    return [repr(part) if isinstance(part, str) else _canonical(part) for part in parts if part != ""]


def plain(value):
    """What `json` cannot write by itself, as something it can."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return shown(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "tolist"):  # numpy and torch
        return value.tolist()
    raise ResultError(f"A {type(value).__name__} cannot be written as JSON; give numbers, strings, lists and dicts.")
