"""What the studies beside the evaluation show, as named facts, in the manner of `lib.study.stats.claims`.

Each function takes the tables of one study and returns plain values: `sequence` for policies that learnt offline,
`model_error` for the drift of predictions, `offline` for metrics that should tell how a model plans, `fastest` for the
planner's timings.
"""

from __future__ import annotations

import pandas as pd

from lib.study.stats.claims import LEVEL, MARGIN, side, value

# --------------------------------------------------------------------------------------- policies that learnt offline

TRANSFORMER, CLONING = "decision-transformer", "behaviour-cloning"


def sequence(summary: pd.DataFrame, curves: list[pd.DataFrame]) -> dict:
    """Facts of one task and dataset; summary: a row per policy, curves: a table per training seed.

    Of the Decision Transformer that is asked for the best return of the data: where its return lies beside that of
    behaviour cloning (`cloning`), and what it keeps beside 1 − margin (`kept`). `asking`: where its return lies when it
    is asked for the most, beside that when it is asked for the least. `highest`: its best `mean` return on the way over
    training seeds, after how many `updates`.
    """
    asked = summary[summary["arm"] == TRANSFORMER].sort_values("asked", kind="stable")
    best = asked[asked["asked"].isna() | (asked["asked"] == 1)][:1]
    cloned = summary[summary["arm"] == CLONING][:1]
    seen = pd.concat(curves) if curves else pd.DataFrame(columns=["arm", "updates", "return_mean"])
    means = seen[seen["arm"] == TRANSFORMER].groupby("updates", sort=False)["return_mean"].mean()
    means = means.sort_values(kind="stable")
    return {
        "cloning": _beside(best, cloned, "return"),
        "kept": side(*best[["kept_low", "kept_high"]].iloc[0], 1 - MARGIN) if len(best) else None,
        "asking": _beside(asked[-1:], asked[:1], "return") if len(asked) > 1 else None,
        "highest": {"updates": float(means.index[-1]), "mean": value(means.iloc[-1])} if len(means) else None,
    }


def _beside(one: pd.DataFrame, other: pd.DataFrame, column: str) -> str | None:
    """Where the interval of one row lies with respect to that of another; None if a row is missing."""
    if not (len(one) and len(other)):
        return None
    return side(*(row[f"{column}_{end}"].iloc[0] for row in (one, other) for end in ("low", "high")))


# ----------------------------------------------------------------------------------------------- open-loop prediction


def model_error(table: pd.DataFrame, cell: str) -> dict:
    """Facts of one cell, whose first source of states is `source`.

    `drift`: where, at the last step, the error on another source lies beside that on the first. `beats_persistence`:
    prediction errs less than the assumption that nothing changes, at every step. `falls`: the last snapshot errs less
    than the first, as a share of the best constant; None where they are not known.
    """
    mine = table[table["model"] == cell]
    source, last = mine["source"].iloc[0], mine["step"].max()
    at_last = mine[mine["step"] == last].groupby("source", sort=False).first()
    first = mine[mine["source"] == source]
    training = table[(table["source"] == source) & (table["step"] == last)].sort_values("decisions", kind="stable")
    before, after = (value(training["share"].iloc[i]) for i in (0, -1))
    known = training["decisions"].notna().all() and None not in (before, after)
    return {
        "source": source,
        "drift": {
            other: _beside(at_last.loc[[other]], at_last.loc[[source]], "mse") for other in at_last.index.drop(source)
        },
        "beats_persistence": bool((first["mse"] < first["persistence_mse"]).all()),
        "falls": after < before if known and len(training) > 1 else None,
    }


# --------------------------------------------------------------------------------------------------- offline metrics

METRICS = ("m1", "m2", "m3", "m4", "m5")
TARGETS = ("cpg", "teacher_return", "kept_e3", "kept_e6", "cpg_return")  # the last in the figure alone
POOLED = "all tasks, ranks"
ENOUGH = 6  # start states, for a verdict to be printed


def offline(correlations: pd.DataFrame, differences: pd.DataFrame, gaps: pd.DataFrame, tasks: list[str]) -> dict:
    """Facts of the offline study, within its one task or over several by ranks (`scope`).

    `order`: target → metrics whose ρ with it is known, the one that goes with it best first. `tested`: how many pairs
    of metric and target have a p by exchanging runs; `telling`: target → metrics with p below 5 % and the expected
    sign; `least_p`, the least p corrected for their number. `compared`: decision-aware metrics beside plain errors, see
    `_compared`. `guide`: which kind is the better guide, "aware" or "plain", "neither", or what stands against saying
    so, that the "decoder" decides or that there is "no evidence"; None where nothing was compared. `verdicts`: task →
    planner → verdict → cells with `enough` starts.
    """
    scope = POOLED if len(tasks) > 1 else next(iter(tasks), None)
    columns = ["task", "metric", "bank", "target", "expected", "spearman", "p_permutation"]
    table = correlations.reindex(columns=columns)
    table = table[(table["bank"] == "mixed") & (table["task"] == scope) & table["metric"].isin(METRICS)]
    table = table.assign(turned=table["spearman"] * table["expected"]).dropna(subset="turned")
    ordered = table.sort_values("turned", ascending=False, kind="stable")
    order = {target: list(ordered.loc[ordered["target"] == target, "metric"]) for target in TARGETS}
    tested = ordered.dropna(subset="p_permutation")
    telling = tested[(tested["p_permutation"] < LEVEL) & (tested["turned"] > 0)]
    telling = {target: list(telling.loc[telling["target"] == target, "metric"]) for target in TARGETS}
    exchanged = len(tested) > 0
    compared = {name: _compared(differences, scope, name == "latent", exchanged) for name in ("decoder", "latent")}
    gaps, verdicts = gaps.reindex(columns=["task", "planner", "verdict", "episodes"]), {}
    for (task, planner), mine in gaps.groupby(["task", "planner"], sort=False):
        counts = mine.loc[mine["episodes"] >= ENOUGH, "verdict"].value_counts(sort=False)
        verdicts.setdefault(task, {})[planner] = {verdict: int(count) for verdict, count in counts.items()}
    return {
        "scope": scope,
        "order": order,
        "tested": len(tested),
        "telling": telling,
        "least_p": min(1.0, len(tested) * float(tested["p_permutation"].min())) if exchanged else None,
        "compared": compared,
        "guide": _guide(compared, exchanged),
        "enough": ENOUGH,
        "verdicts": verdicts,
    }


def _compared(differences: pd.DataFrame, scope: str | None, latent: bool, exchanged: bool) -> dict[str, int]:
    """Of the comparisons of M3 to M5 with M1 and M2 for the planning gap, through the decoder or without it: how many
    there are (`all`), in how many the decision-aware metric has the larger ρ (`more`), and a difference whose interval
    lies `above` 0 or `below` it. The interval exchanges runs where there are several."""
    ends = ["low", "high"] if exchanged else ["low_naive", "high_naive"]
    table = differences.reindex(columns=["task", "metric", "target", "difference", *ends]).dropna(subset="difference")
    table = table[(table["task"] == scope) & (table["target"] == "cpg")]
    table = table[table["metric"].astype(str).str.endswith("_latent") == latent]
    sides = [side(low, high) for low, high in table[ends].itertuples(index=False)]
    more = int((table["difference"] > 0).sum())
    return {"all": len(table), "more": more, "above": sides.count("above"), "below": sides.count("below")}


def _guide(compared: dict[str, dict[str, int]], exchanged: bool) -> str | None:
    sides = {(found["above"] > 0, found["below"] > 0) for found in compared.values() if found["all"]}
    if not compared["decoder"]["all"]:
        return None
    if len(sides) > 1:
        return "decoder"
    if not exchanged:
        return "no evidence"
    return {(True, False): "aware", (False, True): "plain"}.get(sides.pop(), "neither")


# -------------------------------------------------------------------------------------------------- what is the fastest


def fastest(timings: pd.DataFrame) -> dict[str, str]:
    """Our fastest way to compute each thing, by median, of the planner's solves at batch 1 or of a learner's updates.

    Keys are size, samples, iterations and dtype of a solve, or size and part of an update; values modes or learners.
    """
    if "learner" in timings:
        by, way, time = ["size", "part"], "learner", "p50_ms"
        ours = timings[timings["learner"] != "official"]
    else:
        by, way, time = ["size", "samples", "iterations", "dtype"], "mode", "solve_ms_p50"
        ours = timings[(timings["batch"] == 1) & timings["mode"].isin(["eager", "compiled", "cudagraph"])]
    ours = ours.sort_values(time, kind="stable").drop_duplicates(by)
    return {" ".join(map(str, row[by])): row[way] for _, row in ours.iterrows()}
