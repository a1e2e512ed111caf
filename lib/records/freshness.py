"""Whether results are fresh, and if not why: `components` of a job now against those kept beside its results.

parts = components(job)
reasons(job, parts)         # result → why it is stale ("" if it is fresh), and the minutes that its last run took
"""

from __future__ import annotations

import pkgutil
from pathlib import Path

from lib.config import ConfigError
from lib.records import ledger, store
from lib.records.fingerprint import fingerprint
from lib.records.jobs import Job, profile
from lib.records.keys import ResultError, combine, content_hash, shown
from lib.records.notebook import read_parameters

LABELS = {"parameters": "parameter ", "settings": "the profile's ", "inputs": "input "}


def components(job: Job) -> dict:
    """What the key of a job's results is made of; kept beside each, so that a later change can be named."""
    given = dict(job.parameters)
    if job.source.suffix == ".ipynb":
        given = read_parameters(job.source, given)[0]
    values = profile(job.profile)
    return {
        "code": fingerprint(shown(job.source), *job.roots),
        "parameters": given,
        "settings": {name: combine(getattr(values, name)) for name in job.settings},
        "inputs": {shown(need): content_hash(need) if need.is_file() else None for need in job.needs},
    }


def key_of_parts(parts: dict) -> str:
    """The key that these components make."""
    return f"{parts['code']}-{combine([parts[name] for name in LABELS])}"


def kept_run(out: Path) -> dict | None:
    """The record of the run that made a result: its sidecar's, else what the ledger adopted it with."""
    run = store.known(out).get("run", {})
    if {"stage", "key", "components"} <= run.keys() and run["key"].count("-") == 1:
        return run
    entry = ledger.adopted(out)
    return entry["run"] | {"minutes": run.get("minutes")} if entry else None


def stale_reason(out: Path, parts: dict) -> tuple[str, float | None]:
    """Why `out` is not up to date ("" if it is), and the minutes its last run took, if known."""
    if not out.is_file():
        return "never built", None
    if not (run := kept_run(out)):
        return "made by hand or by a run that did not finish", None
    minutes = run.get("minutes")
    if not ledger.same(run["key"], key_of_parts(parts)):
        return changes(run["components"], parts) or "the record beside it is damaged", minutes
    return ("" if store.intact(out) else "file changed by hand or half-written"), minutes


def changes(old: dict, new: dict) -> str:
    """The differences between two sets of components, in words."""
    words = []
    for group, label in LABELS.items():
        before, after = old.get(group, {}), new[group]
        for name in {**before, **after}:
            if name not in before:
                words.append(f"{label}{name} is new")
            elif name not in after:
                words.append(f"{label}{name} is gone")
            elif before[name] != after[name]:
                words.append(f"{label}{name} {before[name]} → {after[name]}" if group == "parameters" else
                             f"{label}{name} {'is missing' if after[name] is None else 'changed'}")  # fmt: skip
    if new["code"] not in ledger.equals(str(old.get("code"))):
        words.append("code changed")
    return ", ".join(words if len(words) <= 4 else [*words[:3], f"{len(words) - 3} more changes"])


def stale_rows(job: Job) -> list[str]:
    """Why rows of a job's table are not up to date; rows that are asked for no more do not matter."""
    if not job.rows or not job.outs[0].is_file():
        return []
    try:
        return [row.why for row in pkgutil.resolve_name(job.rows)(job.profile, job.cell) if row.why]
    except (ResultError, ConfigError) as error:
        return [str(error)]


def reasons(job: Job, parts: dict) -> dict[Path, tuple[str, float | None]]:
    """Each result of a job → why it is stale ("" if it is fresh) and the minutes that its last run took."""
    found = {out: stale_reason(out, parts) for out in job.outs}
    found |= {out: ("" if out.is_file() else "never built", None) for out in job.keeps}
    if not found[job.outs[0]][0] and (rows := stale_rows(job)):
        more = f", and {len(rows) - 3} more" if len(rows) > 4 else ""
        found[job.outs[0]] = ", ".join(rows[:3] if more else rows) + more, found[job.outs[0]][1]
    if job.timing:  # measured when somebody asks for it: what code would measure today is another question
        found = {out: (why if why in ("", "never built") else "", minutes) for out, (why, minutes) in found.items()}
    return found


def stale(job: Job) -> bool:
    """Whether there is anything to make."""
    return any(why for why, _ in reasons(job, components(job)).values())


def age(job: Job, out: Path) -> str:
    """How old timings are: they are of the code and the machine of their day, whatever code says now."""
    if not job.timing and "/latency/" not in shown(out):
        return ""
    day, commit = store.known(out).get("written", "some day")[:10], store.commit_of(out)[:8]
    return f" (timed {day}, {commit or 'before commits were kept'})"
