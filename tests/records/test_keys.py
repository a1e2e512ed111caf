"""Keys change with what code and files say, and with nothing else."""

import pytest

from lib.records.keys import ResultError, code_hash, combine, content_hash, import_closure, module_key

SNIPPET = '''
"""Docstring."""
from __future__ import annotations
import os, sys as system

@decorator(1, key="x")
class A(B, metaclass=C):
    """Another."""
    x: int = 3

    async def f(self, a, /, b=1, *args: int, c: str | None = None, **rest) -> list[int]:
        # a comment
        async with self as (y, z):
            return [await i async for i in a if (n := i) > -1.5e3]

def g(*a, **k):
    match a:
        case [1, *others] | {"x": others, **more} if others:
            return {**k, "y": (lambda q=...: q)(b"\\x00")}
        case A(x=0):
            return f"a{{b{a!r:>{k['w']}}}c" "d" f"{a:}{a=}"
    try:
        yield from a[1:, ..., ::2]
    except* (ValueError, OSError) as error:
        raise RuntimeError from error
    finally:
        del a
'''


def test_code_hash_is_the_same_on_every_python_version():
    # If this fails on a new Python while the other tests pass, every committed result would look stale there.
    assert code_hash(SNIPPET) == "d2ce828b97867142db615c615391857af017f454bcd358af30e7bf63e254715c"


@pytest.mark.parametrize(
    "same",
    [
        "def f(a):\n    '''Doc.'''\n    return a + 1  # comment\n",
        "def f(\n    a,\n):\n    'Other doc.'\n\n    return (a+1)\n",
        "'''Module.'''\ndef f(a):\n    return a + 1",
    ],
)
def test_comments_docstrings_and_layout_do_not_count(same):
    assert code_hash(same) == code_hash("def f(a):\n    return a + 1\n")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a = 1", "a = 2"),
        ("a = 1", "a = 1.0"),
        ("a = 1", "a = True"),
        ("a = '1'", "a = 1"),
        ("a = 'x'", "a = b'x'"),
        ("a = x", "a = 'x'"),
        ("f(a, b)", "f(b, a)"),
        ("f(*a)", "f(a)"),
        ("{**a}", "{None: a}"),
        ("x[1:]", "x[:1]"),
        ("f'{a}'", "f'{a!r}'"),
        ("f'{a:2}'", "f'{a:3}'"),
        ("if a: b()", "while a: b()"),
        ("return_ = None", "return_: None"),
        ("def f(a, *, b): pass", "def f(a, b): pass"),
        ("%matplotlib inline", "%matplotlib widget"),
    ],
)
def test_code_that_differs_has_another_hash(one, other):
    assert code_hash(one) != code_hash(other)


def names(source):
    return {file.stem for file in import_closure(source)}


def test_import_closure_follows_every_form_of_import():
    assert names("import numpy") == set()
    assert {"paths", "keys", "__init__"} == names("import lib.records.keys as k")
    assert {"results", "keys", "paths"} <= names("def f():\n    from lib import results")
    assert {"results", "keys", "paths"} <= names("from .results import cached")
    assert {"results", "keys"} <= names("%matplotlib inline\nimport lib.records.store\n!ls\n")
    assert "run" not in names("import lib.records.store")


def test_module_key_names_a_missing_module():
    assert module_key("lib.records.store") != module_key("lib.records.paths")
    with pytest.raises(ResultError, match="lib.nothing"):
        module_key("lib.nothing")


def test_combine_ignores_the_order_of_keys_and_nothing_else():
    assert combine({"a": 1, "b": 2.5}) == combine({"b": 2.5, "a": 1})
    assert combine("a", "b") != combine("b", "a") != combine("ab")
    with pytest.raises(ResultError, match="object"):
        combine(object())


@pytest.mark.parametrize("column", ["minutes", "seconds", "solve_ms", "p50_minutes", "total_seconds", "steps_per_s"])
def test_timing_columns_do_not_count(tmp_path, column):
    hashes = set()
    for index, time in enumerate(("1.5", "2.5")):
        (tmp_path / f"{index}.csv").write_text(f"arm,{column},return\nteacher,{time},900\n")
        hashes.add(content_hash(tmp_path / f"{index}.csv"))
    assert len(hashes) == 1


def test_every_other_column_counts(tmp_path):
    a, b, c = (tmp_path / f"{name}.csv" for name in "abc")
    a.write_text("arm,milliseconds_ms_count\nteacher,1\n")
    b.write_text("arm,milliseconds_ms_count\nteacher,2\n")
    c.write_bytes(a.read_bytes().replace(b"\n", b"\r\n"))
    assert content_hash(a) != content_hash(b)
    assert content_hash(a) == content_hash(c)
