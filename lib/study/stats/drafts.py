"""What drafts of more and more labels err and return, from the tables of notebook 11.

table = learnt({"walker-walk-1m-1": read_table("data/results/paper/distilled/walker-walk-1m-1.csv")})
"""

from __future__ import annotations

import pandas as pd

from lib.study.stats.intervals import bootstrap_ci

OF = ("draft", "modes", "seed", "labels")
ERRORS = ("label_minutes", "held_out_mse", "policy_mse", "floor", "to_standard")
LINE, OTHER_SEED, SEVERAL_MODES = "usual", "other seed", "several modes"


def learnt(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per cell, draft, training and number of labels: `cell`, those of `OF`, the `training` (as usual, with
    another seed, or of several modes), those of `ERRORS`, and `return` over so many `episodes` with its 95 % interval.
    `listed` are those that a table sets beside each other: the usual trainings after the last round that `cloned` has.

    tables: cell → rows of `lib.study.drafting.CURVE`. The labeller and the policy prior have no labels.
    """
    rows = []
    for cell, table in tables.items():
        usual = table.loc[table["draft"] == "distilled", "modes"].iloc[0]
        last = table.loc[table["draft"] == "cloned", "round"].max()
        for of, played in table.groupby(list(OF), dropna=False, sort=False):
            row = {"cell": cell} | dict(zip(OF, of, strict=True))
            row["training"] = SEVERAL_MODES if row["modes"] != usual and row["modes"] > 0 else LINE
            row["training"] = OTHER_SEED if row["training"] == LINE and row["seed"] > 0 else row["training"]
            row["listed"] = pd.isna(row["labels"]) or (row["training"] == LINE and played["round"].iloc[0] == last)
            low, high = bootstrap_ci(played["return"])
            row |= {name: played[name].iloc[0] for name in ERRORS} | {"return": played["return"].mean()}
            rows.append(row | {"return_low": low, "return_high": high, "episodes": len(played)})
    return pd.DataFrame(rows)
