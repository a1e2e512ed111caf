"""The web edition: static pages of the committed results in build/site, for any browser, without server or network.

    python -m paper.web        # front page, explorer, notebooks; runs no notebook and computes no result

Texts are in paper/web/*.html. A sentence there that makes a claim of claims.toml which no longer holds stops the build,
and so does a page that would load something from elsewhere, or a site of more than `LIMIT` bytes.
"""

from __future__ import annotations

import functools
import html
import json
import os
import re
import shutil
import sys
from pathlib import Path

import jinja2
import nbformat
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from PIL import Image
from pygments.formatters import HtmlFormatter

from lib.files import files, temporary
from lib.records import paths
from lib.records.keys import ResultError
from lib.records.store import explained, read_table, shown
from lib.study.stats.claims import LEVEL
from paper import explorer, readme

LIMIT = 5_000_000  # bytes
FIGURES = (
    "choices",
    "drafts",
    "perturbed",
    "overview",
    "deadlines",
    "certified",
)  # on the front page, where they were drawn
# What would load something when a page is opened. Links that somebody has to follow load nothing.
LOADS = re.compile(
    r"""<(?:script|iframe|embed|object)\b(?![^>]*\b(?:src="(?!\w*:|//)|type="application/json"))"""
    r"""|\b(?:src|srcset|poster|xlink:href)\s*=\s*["']\s*(?:\w+:)?//|<link[^>]*href\s*=\s*["']\s*(?:\w+:)?//"""
    r"""|@import\b|url\(\s*["']?\s*(?:\w+:)?//""",
    re.IGNORECASE,
)


class SiteError(RuntimeError):
    """The site cannot be built; the message says what is wrong, and where."""


def build(profile: str = "paper") -> Path:
    """Write the whole site and return its folder. Until it is whole, and if it fails, the one before stays."""
    site = paths.BUILD / "site"
    with explained(site), temporary(site) as place, temporary(site) as old:
        (place / "notebooks").mkdir(parents=True)
        data, claims = explorer.data(profile), told(profile)
        copied(profile, place, data["films"])
        notebooks, pages = notebook_pages(profile, place), templates(claims)
        (place / "explorer.html").write_text(
            pages.get_template("explorer.html").render(top="", data=Markup(embedded(data))), "utf-8"
        )
        (place / "index.html").write_text(
            pages.get_template("index.html").render(
                top="",
                facts=facts(profile, data, claims),
                table=Markup(markdown2html(readme.table())),
                uses=dict(commands()),
                figures=[name for name in FIGURES if (place / f"{name}.svg").is_file()],
                films=data["films"],
                notebooks=notebooks,
                pdf=(paths.executed(profile) / "paper.pdf").is_file(),
            ),
            "utf-8",
        )
        check(place)
        if site.exists():
            os.replace(site, old)
        os.replace(place, site)
    return site


def embedded(data: dict) -> str:
    """JSON that can stand in a page: no name in it ends the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def templates(claims: dict) -> jinja2.Environment:
    """The pages' texts. In them, {% call claim("name") %}…{% endcall %} is a sentence that results have to bear out."""

    def claim(name: str, caller) -> Markup:
        sentence, found = caller(), claims.get("checked", {}).get(name)
        if not found or not found["holds"]:
            words = " ".join(html.unescape(re.sub("<[^>]*>", "", sentence)).split())
            raise SiteError(f"“{words}” no longer holds (claim {name}): {found['found'] if found else 'not checked'}.")
        return Markup(sentence.strip() + " ")

    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.PAPER / "web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals["claim"] = claim
    return pages


def told(profile: str) -> dict:
    """What `lib.study.claims` wrote of a profile. Raises `SiteError` without it, and where no arm is picked in it."""
    file = paths.results(profile) / "statistics" / "claims.json"
    claims = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not claims.get("headline"):
        raise SiteError(f"{shown(file)} is not there, or picks no arm; run python paper/claims.py --profile {profile}.")
    return claims


def facts(profile: str, data: dict, claims: dict) -> dict:
    """The numbers of the front page: those of our own teachers."""
    folder = paths.results(profile)
    cells = [cell["name"] for cell in data["cells"] if cell["own"]]
    summary = read_table(folder / "horizon" / "summary.csv").query("cell in @cells").set_index("arm")
    tests = read_table(folder / "statistics" / "comparisons.csv").query("role == 'teacher' and cell in @cells")
    parts = read_table(folder / "statistics" / "parts.csv").query("part == 'corrector' and cell in @cells")
    headline = claims["headline"]["arm"]
    verdicts = [
        arm["verdict"] for cell in data["cells"] if cell["own"] for arm in cell["arms"] if arm["arm"] == headline
    ]
    worst = summary.loc[[headline]].sort_values("kept").iloc[0]
    blind = tests[tests["arm"] == claims["headline"]["twin"]]
    return {
        "teachers": len(cells),
        "tasks": summary["task"].nunique(),
        "keep": explorer.KEEP,
        "shown_on": claims["shown_on"],
        "fewer": {arm: f"{1 / mean['evaluations_kept']:.0f}" for arm, mean in claims["averages"].items()
                  if mean["evaluations_kept"]},
        "drafts": int((summary.index == "cloned").sum()),
        "clone_shown": int((tests.query("arm == 'cloned'")["p_holm"] < LEVEL).sum()),
        "blind": len(blind),
        "blind_less": int((blind["difference_high"] < 0).sum()),
        "corrector_adds": int((parts["difference_low"] > 0).sum()),
        "headline": headline,
        "shorter": f"{summary.loc[headline, 'speedup'].min():.0f} to {summary.loc[headline, 'speedup'].max():.0f}",
        "verdicts": {name: verdicts.count(name) for name in (explorer.SHOWN, explorer.LESS, explorer.UNCLEAR)},
        "worst": {"task": worst["task"], "kept": f"{100 * worst['kept']:.0f} %"},
    }  # fmt: skip


def commands() -> list[tuple[str, Markup]]:
    """The README's sections that hold commands: heading, and the commands."""
    text = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", text, re.MULTILINE)
    found = [(heading, re.findall(r"^```.*?^```$", body, re.MULTILINE | re.DOTALL)) for heading, body in sections]
    return [(heading, Markup(markdown2html("\n\n".join(blocks)))) for heading, blocks in found if blocks]


# ---------------------------------------------------------------------------------------------------------- notebooks


@functools.cache
def exporter() -> HTMLExporter:
    return HTMLExporter(template_name="basic")  # the cells alone: the page around them is ours


def notebook_pages(profile: str, place: Path) -> list[dict]:
    """Write a page for each notebook, as it was executed where that was done, in quick if not in the profile; its name,
    title and question."""
    found = []
    for source in files(paths.NOTEBOOKS, "*.ipynb"):
        of = next(
            (name for name in (profile, "quick") if files(paths.executed(name), f"{source.stem}*.ipynb")), profile
        )
        runs = {
            file.stem[len(source.stem) :].lstrip("-"): file
            for file in files(paths.executed(of), f"{source.stem}*.ipynb")
        }
        cell = explorer.EXAMPLE if explorer.EXAMPLE in runs else next(iter(runs), None)  # one page for a notebook
        notebook = nbformat.read(runs.get(cell, source), as_version=4)
        for output in (output for each in notebook.cells for output in each.get("outputs", [])):
            scripted(output)
        text = notebook.cells[0].source
        about = {
            "file": f"{source.stem}.html",
            "title": re.search(r"^# (.+)$", text, re.MULTILINE)[1],
            "question": (re.search(r"^\*\*Question\.\*\* (.+)$", text, re.MULTILINE) or ["", ""])[1],
            "cell": cell,
            "date": notebook.metadata.get("papermill", {}).get("end_time", "")[:10],
        }
        body = Markup(exporter().from_notebook_node(notebook)[0])
        page = templates({}).get_template("notebook.html").render(top="../", body=body, profile=of, **about)
        (place / "notebooks" / about["file"]).write_text(page, "utf-8")
        found.append(about)
    return found


def scripted(output: dict) -> None:
    """Take from an output what runs in a browser; its text stays."""
    shapes = output.get("data", {})
    for kind in [kind for kind in shapes if "javascript" in kind or "<script" in str(shapes[kind]).lower()]:
        del shapes[kind]


# -------------------------------------------------------------------------------------------------------------- files


def copied(profile: str, place: Path, films: list[dict]) -> None:
    """Style, script, figures and films; of a film that always moves a still picture, for who asks for less motion."""
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("friendly", "github-dark"))
    style = (paths.PAPER / "web" / "site.css").read_text(encoding="utf-8")
    (place / "site.css").write_text(
        f"{style}\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n", encoding="utf-8"
    )
    for script in files(paths.PAPER / "web", "*.js"):
        shutil.copyfile(script, place / script.name)
    drawn = paths.figures(profile)
    for name in [f"{name}.svg" for name in FIGURES] + [film["file"] for film in films]:
        if (drawn / name).is_file():
            shutil.copyfile(drawn / name, place / name)
        if name.endswith(".gif"):
            with Image.open(place / name) as film:
                film.convert("RGB").quantize(64).save((place / name).with_suffix(".png"), optimize=True)


def check(place: Path) -> None:
    """Raises `SiteError` for a page that would load something from elsewhere, and for a site that is too large."""
    sizes = {file: file.stat().st_size for file in files(place, "**/*")}
    for file in (file for file in sizes if file.suffix in (".html", ".css", ".js", ".svg")):
        if found := LOADS.search(file.read_text(encoding="utf-8")):
            raise SiteError(f"{file.relative_to(place)} would load something from elsewhere: {found[0][:80]!r}.")
    if sum(sizes.values()) > LIMIT:
        largest = sorted(sizes, key=sizes.get, reverse=True)[:3]
        words = ", ".join(f"{file.relative_to(place)} {sizes[file] / 1e6:.1f} MB" for file in largest)
        raise SiteError(
            f"The site has {sum(sizes.values()) / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}; largest: {words}."
        )


def main() -> int:
    try:
        print(f"{shown(build())}/index.html")
    except (SiteError, ResultError) as error:
        print(f"site: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
