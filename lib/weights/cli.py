"""Teachers by name, from the command line.

python -m lib.weights.cli list            # every name, and whether it is shipped, fetched or still to be fetched
python -m lib.weights.cli info walker-walk-1m-1
python -m lib.weights.cli fetch official/dog-run-1 official/mt80-5m
python -m lib.weights.cli register walker-run-5m-1   # lists a teacher of data/teachers/ with its checksum
"""

from __future__ import annotations

import sys
from typing import Annotated

import tyro
from tyro.extras import SubcommandApp

from lib.config import data_folder
from lib.weights import names as teachers
from lib.weights import official
from lib.weights.formats import CheckpointError
from lib.weights.names import card_of, file_hash, find, is_fetched
from lib.weights.native import read_ours, shipped_teachers, size_of, teacher_path
from lib.weights.official import TASK_SETS

app = SubcommandApp()
Names = tyro.conf.Positional[tuple[str, ...]]
Manifest = Annotated[
    str | None, tyro.conf.arg(help=f"your own registry; else the one {teachers.MANIFEST_VARIABLE} names")
]


@app.command(name="list")
def list_all(manifest: Manifest = None) -> None:
    """Every teacher that has a name: its size, whether it is here, what is known of its checksum, licence."""
    listed = {name: teachers.Entry(name, file=f"{name}.safetensors") for name in shipped_teachers()}
    listed |= teachers.entries(manifest)
    print(f"{'name':<36} {'size':<5} {'where':<12} {'sha256':<13} licence")
    for name, entry in sorted(listed.items(), key=lambda item: (not item[1].file, item[0])):
        where = "shipped" if entry.file else "fetched" if is_fetched(entry) else "not fetched"
        print(f"{name:<36} {entry.size:<5} {where:<12} {(entry.sha256 or 'unknown')[:12]:<13} {entry.licence}")


@app.command
def info(names: Names, /, manifest: Manifest = None) -> None:
    """Tasks, dimensions, checksum and licence of teachers; fetches nothing."""
    for name in names:
        print("\n".join(f"{key:<11} {value}" for key, value in facts_of(name, manifest).items() if value))


@app.command
def fetch(names: Names, /, manifest: Manifest = None) -> None:
    """Download teachers, or verify those that are here; prints their paths."""
    for name in names:
        print(teacher_path(name, manifest, verify=True))


@app.command
def register(names: Names, /) -> None:
    """List teachers of data/teachers/ with their checksums."""
    for name in names:
        print(f"{name}: {teachers.register(name)}")


def facts_of(name: str, manifest: str | None = None) -> dict[str, str]:
    """What is known of a teacher, as text by heading; nothing is fetched for it."""
    listed, facts = find(name, manifest), {"name": name}
    if listed and listed.url and not is_fetched(listed):
        facts |= {"task": listed.task or listed.tasks, "size": listed.size, "url": listed.url}
        facts["file"] = f"not fetched; `python -m lib.weights.cli fetch {name}` fetches it"
        return facts | {"sha256": listed.sha256 or "unknown", "licence": listed.licence, "note": listed.note}
    path, tasks = teacher_path(name, manifest), [listed.task if listed else ""]
    if path.suffix == ".safetensors":
        c, _, task = read_ours(path)
        tasks, embedding = [task or tasks[0]], ""
    else:
        c, count, width = official.infer(official.read(path), path)
        tasks, embedding = TASK_SETS.get(count, tasks), f", task embedding {width}" if count else ""
    checksum, told = file_hash(path), "not listed"
    if listed and listed.sha256:
        told = "as listed" if checksum == listed.sha256 else f"the listed one is {listed.sha256}"
    elif listed and listed.url:
        told = "as first downloaded" if is_fetched(listed, verify=True) else f"changed since; `fetch {name}` mends it"
    facts |= {
        "task": f"{len(tasks)} tasks: {', '.join(tasks)}" if len(tasks) > 1 else tasks[0] or "not recorded",
        "size": size_of(c),
        "dimensions": f"{c.obs_dim} observations, {c.action_dim} actions, latent {c.latent_dim}, encoder of "
        f"{c.num_enc_layers} layers, {c.enc_dim} wide, others {c.mlp_dim} wide, {c.num_q} Q heads, {c.num_bins} bins"
        + embedding,
        "url": listed.url if listed else "",
        "file": f"{path}, {path.stat().st_size:,} bytes",
        "sha256": f"{checksum} ({told})",
        "licence": listed.licence if listed else "unknown",
    }
    if path.parent == data_folder("teachers") and (card := card_of(path, "return_mean", "returns")):
        spread = f" ± {card['return_std']:.1f}" if isinstance(card.get("return_std"), float) else ""
        facts["return"] = f"{card['return_mean']:.1f}{spread} over {len(card['returns'])} episodes (its card)"
    return facts


def main(arguments: list[str] | None = None) -> int:
    try:
        app.cli(prog="python -m lib.weights.cli", description="Teachers by name.", args=arguments)
    except CheckpointError as error:
        print(f"checkpoints: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that cannot be written to, a disk that is full
        print(f"checkpoints: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("checkpoints: interrupted; what was not whole was not kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
