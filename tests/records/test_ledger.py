"""The ledger: equal code makes fresh in chains and both ways, unequal code never; it only ever grows by whole lines."""

import json
import os

import pytest

from lib.records import ledger, paths
from lib.records.keys import ResultError, content_hash, shown


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    return tmp_path / "results" / "ledger.jsonl"


def audited(old, new, equal=True):
    ledger.append({"kind": "audit", "stage": "horizon", "old": old, "new": new, "equal": equal})


def test_without_a_ledger_only_equal_keys_are_the_same():
    assert ledger.entries() == () and ledger.equals("a") == {"a"}
    assert ledger.same("a-1", "a-1")
    assert not any(ledger.same(kept, "a-1") for kept in ("b-1", "a-2", None, "", "a"))


def test_equal_entries_hold_in_chains_and_both_ways():
    audited("c", "d")
    audited("a", "b")
    audited("b", "c")
    audited("x", "y")
    assert ledger.equals("a") == ledger.equals("d") == {"a", "b", "c", "d"}
    assert ledger.same("a-1", "d-1") and ledger.same("d-1", "a-1")
    assert not ledger.same("a-1", "d-2") and not ledger.same("a-1", "x-1")


def test_an_unequal_entry_makes_nothing_fresh():
    audited("a", "b", equal=False)
    assert not ledger.same("a-1", "b-1") and ledger.equals("a") == {"a"}


@pytest.mark.parametrize("order", [(True, False), (False, True)])
@pytest.mark.parametrize("pair", ["ab", "ba"])
def test_a_pair_that_was_once_unequal_is_not_taken_for_equal(order, pair):
    audited("a", "b", order[0])
    audited(*pair, order[1])
    assert not ledger.same("a-1", "b-1") and not ledger.same("b-1", "a-1")


def test_a_chain_does_not_make_equal_what_was_found_unequal():
    audited("a", "b")
    audited("b", "c")
    audited("a", "c", equal=False)
    assert ledger.equals("a") == {"a", "b"} and not ledger.same("c-1", "a-1") and ledger.same("b-1", "c-1")


def test_names_are_the_same_for_keys_that_are_the_same_and_stay_when_the_chain_grows():
    alone = ledger.name_of("b-1")
    audited("a", "b")
    first = ledger.name_of("a-1")
    assert ledger.representative("b") == "a" and ledger.name_of("b-1") == first != alone and len(first) == 24
    audited("b", "c")
    assert ledger.name_of("c-1") == first != ledger.name_of("c-2")
    assert ledger.representative("x") == "x"


def test_keys_of_the_first_edition_have_new_names():
    ledger.append({"kind": "adopted", "result": "r.csv", "keys": {"0123": "a-1"}})
    audited("a", "b")
    assert ledger.renamed("0123") == "a-1" and ledger.renamed("b-1") == "b-1"
    assert ledger.same("0123", "b-1") and not ledger.same("4567", "b-1")


def test_the_last_adoption_of_a_result_counts_while_its_content_is_what_was_adopted(tmp_path):
    result = tmp_path / "one.csv"
    result.write_text("return\n1\n")
    about = {"kind": "adopted", "result": shown(result), "content": content_hash(result), "keys": {}}
    for commit in ("old", "new"):
        ledger.append(about | {"commit": commit})
    assert ledger.adopted(result)["commit"] == "new" and ledger.adopted(tmp_path / "two.csv") is None
    result.write_text("return\n2\n")
    assert ledger.adopted(result) is None


def test_an_entry_is_one_line_more(file):
    audited("a", "b")
    first = file.read_bytes()
    ledger.append({"kind": "adopted", "result": "×", "keys": {}, "at": paths.ROOT / "lib"})
    assert file.read_bytes().startswith(first) and file.read_bytes().count(b"\n") == 2
    assert json.loads(file.read_text().splitlines()[1]) == {"kind": "adopted", "result": "×", "keys": {}, "at": "lib"}


def test_a_broken_line_is_named_by_its_number(file):
    audited("a", "b")
    file.write_text(file.read_text() + "<<<<<<< HEAD\n")
    with pytest.raises(ResultError, match=r"ledger\.jsonl:2 is not JSON; restore the ledger from git"):
        ledger.same("a-1", "b-1")


def test_a_line_that_a_kill_cut_short_is_none_and_is_replaced(file):
    audited("a", "b")
    whole = file.read_bytes()
    for cut in (1, len(whole) - 1):  # everything but the end of the line, too, is cut short
        file.write_bytes(whole + whole[:cut])
        assert len(ledger.entries()) == 1
        audited("b", "c")
        assert file.read_bytes().startswith(whole) and [e["new"] for e in ledger.entries()] == ["b", "c"]
    file.write_bytes(whole[:5])
    audited("b", "c")
    assert [e["new"] for e in ledger.entries()] == ["c"]


@pytest.mark.parametrize("line", ["[1]", '"x"', "null", "{}", '{"kind": "audit", "old": "a"}', '{"kind": "another"}'])
def test_a_line_of_another_shape_is_named_by_its_number(file, line):
    audited("a", "b")
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(ResultError, match=r"ledger\.jsonl:2 is no entry of the ledger; restore the ledger from git"):
        ledger.same("a-1", "b-1")


def test_an_entry_for_which_there_is_no_room_is_an_error_and_none(file, monkeypatch):
    audited("a", "b")
    write = os.write
    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"No space left on device: .*ledger\.jsonl"):
        patched.setattr(os, "write", lambda handle, data: write(handle, data[:5]))
        audited("b", "c")
    assert len(ledger.entries()) == 1
    audited("b", "c")
    assert [e["new"] for e in ledger.entries()] == ["b", "c"]


@pytest.mark.parametrize("kept", [None, "", "x", "-", "a-1-2"])
def test_what_is_no_key_is_the_same_as_none(kept):
    assert not ledger.same(kept, "a-1")
