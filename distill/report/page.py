"""A report as one HTML page that needs no other file, and the same in Markdown with its figures beside it.

A report is a list of blocks; ``page.html.jinja`` and ``page.md.jinja`` say what each kind of block looks like. A string is
Markdown: a paragraph, or a heading after ``## ``. `Backticks` mark code in it; all other signs stand for themselves.
"""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from zlib import crc32

from jinja2 import Environment, PackageLoader, select_autoescape
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from cache_tools import write_file
from distill.report.figures import STYLE


@dataclass(frozen=True)
class Table:
    """Columns of text; the first one is a name, the others are figures.

    Args:
        head: column headings; a line break splits one.
        rows: as many cells each.
        note: below it.
        strong: names of rows that stand out.
    """

    kind: ClassVar = "table"
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

    kind: ClassVar = "plots"
    plots: list[Plot]


@dataclass(frozen=True)
class Fold:
    """Long text that opens on a click."""

    kind: ClassVar = "fold"
    title: str
    text: str

    @property
    def fence(self) -> str:
        """The line before and after the text in Markdown: longer than any row of backticks in it."""
        return "`" * max(3, 1 + max(map(len, re.findall("`+", self.text)), default=0))


Block = str | Table | Plots | Fold


def write(folder: Path, title: str, blocks: Sequence[Block]) -> None:
    """Write ``report.html``, ``report.md`` and its ``figures`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    page, twin = folder / "report.html", folder / "report.md"
    if twin.is_file():  # of an earlier report, whose figures go
        for file in re.findall(r"\]\((figures/[\w-]+\.png)\)$", twin.read_text(), re.MULTILINE):
            (folder / file).unlink(missing_ok=True)
    with rc_context(STYLE):
        for plot in [plot for block in blocks if isinstance(block, Plots) for plot in block.plots]:
            (folder / plot.file).parent.mkdir(exist_ok=True)
            plot.figure.savefig(folder / plot.file, dpi=130)
    write_file(twin, f"# {_plain(title)}\n\n{markdown(blocks)}\n")
    write_file(page, html(title, blocks))


def markdown(blocks: Iterable[Block]) -> str:
    """Blocks as Markdown."""
    return TEMPLATES.get_template("page.md.jinja").render(blocks=blocks).rstrip("\n")


def html(title: str, blocks: Iterable[Block]) -> str:
    """Blocks as a whole page; styles and figures are inside."""
    return TEMPLATES.get_template("page.html.jinja").render(title=title, blocks=blocks)


def _plain(text: str) -> str:
    """Text for Markdown in which no name is a tag; what stands in backticks is shown as it is."""
    return re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], text)


def _cell(text: str) -> str:
    """A cell of a Markdown table, in one line."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")


def _inline(text: str) -> Markup:
    return Markup(MARKDOWN.renderInline(text))


def _html(text: str) -> Markup:
    return Markup(MARKDOWN.render(text))


def _svg(plot: Plot) -> Markup:
    file = io.StringIO()
    with rc_context(STYLE):
        plot.figure.savefig(file, format="svg", metadata={"Date": None}, dpi=130)
    svg = file.getvalue()
    least = round(65 * plot.figure.get_figwidth())  # pixels: legible, or it scrolls
    opening = f'<svg role="img" aria-label="{escape(plot.caption)}" style="min-width: {least}px"'
    return Markup(svg[svg.index("<svg") :].replace("<svg", opening, 1))


MARKDOWN = MarkdownIt("zero").enable(["heading", "backticks"])

TEMPLATES = Environment(
    loader=PackageLoader("distill.report", ""),
    autoescape=select_autoescape(["html.jinja"]),
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"plain": _plain, "cell": _cell, "html": _html, "inline": _inline, "svg": _svg}
