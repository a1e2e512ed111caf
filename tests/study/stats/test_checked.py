"""Claims of the prose: true of a table, false of a changed one, and refused where they cannot be asked."""

import pandas as pd
import pytest

from lib.records import paths
from lib.records.keys import ResultError
from lib.study.stats.checked import check, read_claims

TABLE = pd.DataFrame({"arm": ["a", "a", "b"], "cell": list("xyx"), "kept_low": [0.99, 0.97, None], "return": [1, 2, 3]})


@pytest.fixture
def folder(tmp_path):
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


def asked(folder, **claim):
    return check("c", {"table": "t.csv", "count": "== 1 of 1"} | claim, folder)


@pytest.mark.parametrize(
    "claim, holds",
    [
        ({"rows": "arm == 'a'", "holds": "kept_low > 0.96", "count": "== 2 of 2"}, True),
        ({"rows": "arm == 'a'", "holds": "kept_low > 0.98", "count": "== 2 of 2"}, False),
        ({"rows": "arm == 'a'", "holds": "kept_low > 0.98", "count": ">= 1 of 2"}, True),
        ({"rows": "arm == 'a'", "holds": "kept_low > 0.98", "count": "== 2 of 2"}, False),
        ({"rows": "arm == 'a'", "holds": "kept_low > 0.98", "count": "<=1 of 2"}, True),
        ({"rows": "arm == 'a'", "holds": "kept_low > 0.98", "count": "== 1 of 3"}, False),
        ({"holds": "`return` >= 1", "count": "== 3 of 3"}, True),
        ({"holds": "kept_low > 0", "count": "== 3 of 3"}, False),  # a missing number bears nothing out
        ({"rows": "arm == 'nobody'", "holds": "kept_low > 0", "count": "<= 3 of 3"}, False),
        ({"rows": "arm == 'nobody'", "holds": "kept_low > 0", "count": "== 0 of 0"}, False),
        ({"pivot": ["cell", "arm", "return"], "holds": "b > a", "count": "== 1 of 2"}, True),  # on x, and y has no b
        ({"pivot": ["cell", "arm", "return"], "holds": "b > a", "count": "== 2 of 2"}, False),
        ({"rows": "arm == 'a'", "each": "cell", "holds": "kept_low > 0.96", "count": "== 1 of 1"}, True),
        ({"rows": "arm == 'a'", "each": "cell", "holds": "kept_low > 0.98", "count": "== 1 of 1"}, False),
        ({"each": "cell", "holds": "`return` >= 1", "count": "== 2 of 2"}, False),  # y has one row
        ({"rows": "arm == 'nobody'", "each": "cell", "holds": "kept_low > 0", "count": "== 0 of 0"}, False),
    ],
)
def test_a_claim_holds_of_enough_rows(folder, claim, holds):
    assert asked(folder, **claim)["holds"] is holds


def test_what_was_found_says_why(folder):
    found = asked(folder, rows="arm == 'a'", holds="kept_low > 0.98", count=">= 2 of 2")["found"]
    assert found == "kept_low > 0.98 holds of 1 of 2 rows of t.csv where arm == 'a'; wanted: >= 2 of 2"


def test_what_was_found_of_each_is_said(folder):
    found = asked(folder, rows="arm == 'a'", each="cell", holds="kept_low > 0.98")["found"]
    assert found.startswith("kept_low > 0.98 holds of 1 of 1 rows of x, 0 of 1 rows of y of t.csv where")


@pytest.mark.parametrize(
    "claim, message",
    [
        ({"each": "nobody", "holds": "kept_low > 0"}, "claim c cannot be asked of t.csv: 'nobody'"),
        ({"holds": "kept > 0"}, "claim c cannot be asked of t.csv: name 'kept' is not defined"),
        ({"rows": "arm ==", "holds": "kept_low > 0"}, "claim c cannot be asked of t.csv"),
        ({"holds": "kept_low"}, "'kept_low' is no yes or no"),
        ({"holds": "kept_low > 0", "count": "most"}, "count = 'most' must be one of ==, >=, <="),
        ({"holds": "kept_low > 0", "count": ">= 2"}, "count = '>= 2' must be .* two numbers"),
        ({"pivot": ["cell", "arm"], "holds": "a > b"}, "claim c cannot be asked of t.csv"),
        ({"table": "gone.csv", "holds": "kept_low > 0"}, "gone.csv"),
    ],
)
def test_what_cannot_be_asked_is_refused(folder, claim, message):
    with pytest.raises(ResultError, match=message):
        asked(folder, **claim)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[a]\ntable = 't.csv'", "claim a .* needs count and holds and table"),
        ("[a]\ntable = 't.csv'\nholds = 'x'\ncount = 'y'\nwhen = 'z'", "may have each, pivot, rows"),
        ("a = 1", "claim a"),
        ("[a", "cannot be read as claims"),
    ],
)
def test_a_damaged_list_is_refused(tmp_path, text, message):
    (tmp_path / "claims.toml").write_text(text)
    with pytest.raises(ResultError, match=message):
        read_claims(tmp_path / "claims.toml")


def test_every_claim_of_the_paper_holds_of_the_committed_results():
    claims = read_claims(paths.PAPER / "claims.toml")
    false = {n: found for n, c in claims.items() if not (found := check(n, c, paths.results("paper")))["holds"]}
    assert claims and not false
