"""A report as one HTML page that needs nothing else, and the same in Markdown with its figures beside it."""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from zlib import crc32

from matplotlib import rc_context
from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2327; background: #fff }
body { max-width: 1120px; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem }
code, pre { font: .85em ui-monospace, monospace; background: #f4f5f6; border-radius: 3px } code { padding: .1em .3em }
pre { padding: .6rem; overflow-x: auto } p, li { max-width: 75ch }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums }
th, td { padding: .22rem .55rem; text-align: right; border-bottom: 1px solid #e6e8ea }
th { white-space: pre-line; vertical-align: bottom }
td { white-space: nowrap }
td:first-child { white-space: normal; min-width: min(11rem, 45vw); max-width: 45vw; overflow-wrap: anywhere }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
tr.strong td { background: #e8f4ee; font-weight: 600 }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
figure { margin: 0; max-width: 100%; overflow-x: auto } figure svg { max-width: 100%; height: auto }
figcaption, .note { font-size: .86rem; color: #555; max-width: 75ch } summary { cursor: pointer }
"""

SVG: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quorum",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Heading:
    """Begins a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; `backticks` mark code."""

    text: str


@dataclass(frozen=True)
class Table:
    """Columns of text; the first one is a name, the others are figures.

    Args:
        head: column headings; a line break splits one.
        rows: as many cells each.
        note: below it.
        strong: names of rows that stand out.
    """

    head: list[str]
    rows: list[list[str]]
    note: str = ""
    strong: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Plot:
    """A figure: a name, from which its file's is made, ``caption``, and the drawing."""

    name: str
    caption: str
    figure: Figure

    @property
    def file(self) -> str:
        """Its file, beside the report."""
        plain = re.sub(r"[^A-Za-z0-9_]+", "-", self.name)
        return f"figures/{plain if plain == self.name else f'{plain}-{crc32(self.name.encode()):08x}'}.png"


@dataclass(frozen=True)
class Plots:
    """Figures side by side, where there is room."""

    plots: list[Plot]


@dataclass(frozen=True)
class Fold:
    """Long text that opens on a click."""

    title: str
    text: str


Block = Heading | Text | Table | Plots | Fold


def write(folder: Path, title: str, blocks: Sequence[Block]) -> Path:
    """Write ``report.html``, ``report.md`` and its ``figures`` into ``folder``; gives the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "report.md").is_file():  # an earlier report
        for each in re.findall(r"\]\((figures/[\w-]+\.png)\)$", (folder / "report.md").read_text(), re.MULTILINE):
            (folder / each).unlink(missing_ok=True)
    for plot in [plot for block in blocks if isinstance(block, Plots) for plot in block.plots]:
        (folder / "figures").mkdir(exist_ok=True)
        with rc_context(SVG):
            plot.figure.savefig(folder / plot.file, dpi=130)
    (folder / "report.md").write_text(f"# {title}\n\n{markdown(blocks)}\n")
    page = folder / "report.html"
    page.write_text(html(title, blocks))
    return page


def markdown(blocks: Iterable[Block]) -> str:
    """Blocks as Markdown."""
    return "\n\n".join(_markdown(block) for block in blocks)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Text(text):
            return text
        case Table(head, rows, note):
            lines = [[each.replace("\n", "<br>") for each in head], ["---"] + ["---:"] * (len(head) - 1), *rows]
            shown = [
                [each.replace("|", "\\|").replace("<", "&lt;").replace("&lt;br>", "<br>") for each in line]
                for line in lines
            ]
            return "\n".join(f"| {' | '.join(line)} |" for line in shown) + (f"\n\n{note}" if note else "")
        case Plots(plots):
            return "\n\n".join(f"![{plot.caption}]({plot.file})" for plot in plots)
        case Fold(title, text):
            return f"<details><summary>{title}</summary>\n\n```\n{text.rstrip()}\n```\n\n</details>"


def html(title: str, blocks: Iterable[Block]) -> str:
    """Blocks as a whole page; styles and figures are inside."""
    about = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"{about}<title>{escape(title)}</title><style>{STYLE}</style>"
    body = "\n".join([f"<h1>{escape(title)}</h1>", *(_html(block) for block in blocks)])
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Table(head, rows, note, strong):
            heads = "".join(f"<th>{escape(each)}</th>" for each in head)
            lines = "".join(_row(row, row[0] in strong) for row in rows)
            below = f'<p class="note">{_inline(note)}</p>' if note else ""
            return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>{below}'
        case Plots(plots):
            return f'<div class="figures">{"".join(map(_figure, plots))}</div>'
        case Fold(title, text):
            return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _row(cells: Sequence[str], strong: bool) -> str:
    return f"<tr{' class=strong' if strong else ''}>{''.join(f'<td>{escape(each)}</td>' for each in cells)}</tr>"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _figure(plot: Plot) -> str:
    file = io.StringIO()
    with rc_context(SVG):
        plot.figure.savefig(file, format="svg", metadata={"Date": None}, dpi=130)
    svg = file.getvalue()
    label, least = escape(plot.caption, quote=True), round(65 * plot.figure.get_figwidth())  # legible, or it scrolls
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}" style="min-width: {least}px"', 1)
    return f"<figure>{svg}<figcaption>{_inline(plot.caption[:1].upper() + plot.caption[1:])}</figcaption></figure>"


def panel(width: float, height: float, draw: Callable[..., None], *arguments: object) -> Figure:
    """A figure of one panel, in inches; ``draw(axis, *arguments)`` fills it."""
    with rc_context(SVG):
        figure = Figure(figsize=(width, height), layout="constrained")
        axis = figure.subplots()
        axis.spines[["top", "right"]].set_visible(False)
        draw(axis, *arguments)
    return figure
