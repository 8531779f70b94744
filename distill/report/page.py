"""A report: Markdown made by a template, with its figures beside it, and the same as one HTML page with all inside.

In a template every value is escaped by :func:`plain`: a name can become no tag, and only `backticks` have a meaning in it.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from cache_tools import write_file
from distill.report.figures import STYLE

# code between single backticks, and whatever else has a meaning in Markdown; an underscore only at the edge of a word
PLAIN = re.compile(r"(?P<code>(?<!`)`[^`\n]+`(?!`))|[`\\<*|\[\]\n]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w+;)")


@dataclass(frozen=True)
class Table:
    """Columns of text; the first one is a name, the others are figures.

    Args:
        head: column headings; a line break splits one.
        rows: as many cells each.
        note: below it.
        strong: names of rows that stand out.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: frozenset[str] = field(default_factory=frozenset)

    def markdown(self) -> Markup:
        """The table in Markdown, with the names of ``strong`` rows in bold, and the note below it."""
        rows = [[Markup(f"**{plain(row[0])}**") if row[0] in self.strong else row[0], *row[1:]] for row in self.rows]
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *rows]
        table = "\n".join(f"| {' | '.join(map(plain, line))} |" for line in lines)
        return Markup(f"{table}\n\n{plain(self.note)}".rstrip())


@dataclass(frozen=True)
class Plot:
    """A figure: a name, from which its file's is made, ``caption``, and the drawing."""

    name: str
    caption: str
    figure: Figure

    @property
    def file(self) -> str:
        """Its file, beside the report."""
        safe = re.sub(r"[^A-Za-z0-9_]+", "-", self.name)
        return f"figures/{safe if safe == self.name else f'{safe}-{crc32(self.name.encode()):08x}'}.png"


def write(folder: Path, template: str, title: str, **values: Any) -> None:
    """Write ``report.html``, ``report.md`` and its ``figures``.

    Args:
        folder: gets them; figures of an earlier report go.
        template: of the Markdown, below the package ``distill``.
        title: of the page.
        values: what the template needs, functions too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, twin = folder / "report.html", folder / "report.md"
    if twin.is_file():
        for file in re.findall(r"\]\((figures/[\w-]+\.png)\)$", twin.read_text(), re.MULTILINE):
            (folder / file).unlink(missing_ok=True)
    text, drawn = markdown(template, title=title, **values)
    with rc_context(STYLE):
        for file, plot in drawn.items():
            (folder / file).parent.mkdir(exist_ok=True)
            plot.figure.savefig(folder / file, dpi=130)
    write_file(twin, text)
    write_file(page, html(title, text, drawn))


def markdown(template: str, **values: Any) -> tuple[str, dict[str, Plot]]:
    """A report in Markdown, and file -> figure of all that it shows."""
    drawn: dict[str, Plot] = {}

    def plots(shown: Sequence[Plot]) -> Markup:
        drawn.update({plot.file: plot for plot in shown})
        return Markup("\n".join(f"![{plain(plot.caption)}]({plot.file})" for plot in shown))

    text = TEMPLATES.get_template(template).render(plots=plots, **values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", drawn


def html(title: str, text: str, drawn: Mapping[str, Plot]) -> str:
    """A report's Markdown as a whole page; style sheet and figures are inside."""
    tokens = MARKDOWN.parse(text)
    for opening, inline, closing in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if inline.children and {child.type for child in inline.children} <= {"image", "softbreak"}:  # figures side by side
            opening.tag = closing.tag = "div"
            opening.attrSet("class", "figures")
    body = MARKDOWN.renderer.render(tokens, MARKDOWN.options, dict(drawn))
    return TEMPLATES.get_template("report/page.html.jinja").render(title=title, body=Markup(body))


def plain(value: object) -> Markup:
    """``value`` as Markdown that shows the same text; `backticks` mark code. A Markup is Markdown already."""
    if isinstance(value, Markup):
        return value
    shown = {"<": "&lt;", "\n": "<br>"}
    return Markup(PLAIN.sub(lambda found: found[0] if found["code"] else shown.get(found[0], rf"\{found[0]}"), str(value)))


def fence_of(text: str) -> Markup:
    """A line to put before and after ``text`` as code: longer than any row of backticks in it."""
    return Markup("`") * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def _figure(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """An image of the Markdown as a figure with its drawing inside."""
    plot, children = env[tokens[index].attrs["src"]], tokens[index].children or []
    file = io.StringIO()
    with rc_context(STYLE):
        plot.figure.savefig(file, format="svg", metadata={"Date": None}, dpi=130)
    svg = file.getvalue()
    least = round(65 * plot.figure.get_figwidth())  # pixels: legible, or it scrolls
    opening = f'<svg role="img" aria-label="{escape(plot.caption)}" style="min-width: {least}px"'
    svg = svg[svg.index("<svg") :].replace("<svg", opening, 1)
    return f"<figure>{svg}<figcaption>{renderer.renderInline(children, options, env)}</figcaption></figure>"


MARKDOWN = MarkdownIt("commonmark").enable("table")
MARKDOWN.add_render_rule("image", _figure)
MARKDOWN.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
MARKDOWN.add_render_rule("table_close", lambda *_: "</table></div>\n")

TEMPLATES = Environment(
    loader=PackageLoader("distill", ""),
    autoescape=True,
    finalize=plain,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
TEMPLATES.filters["raw"] = Markup
TEMPLATES.globals["fence_of"] = fence_of
