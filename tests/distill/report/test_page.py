import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from distill.report.figures import panel
from distill.report.page import Fold, Plot, Plots, Table, html, markdown, write

BLOCKS = [
    "## A <b>heading",
    "what `--flag` does & more",
    Table(["system", "esol\nr2"], [["a<1>", "0.5"], ["b", "0.4"]], "a `note`", frozenset(["b"])),
    Plots([Plot("line", 'a "line"', panel(2, 2, lambda axis: axis.plot([1, 2])))]),
    Fold("configuration", "lr: 1\nname: <x>\n"),
]
VOID = {"meta", "link", "br", "path", "use", "image", "rect"}


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_what_was_written_and_closes_every_tag():
    reader = Balanced()
    reader.feed(html("a title < b", BLOCKS))
    assert reader.open == []
    for shown in ("A <b>heading", "what --flag does & more", "a<1>", "name: <x>", "a title < b"):
        assert shown in reader.text
    assert '<tr class="strong"><td>b</td>' in html("", BLOCKS)
    assert '<svg role="img" aria-label="a &#34;line&#34;"' in html("", BLOCKS)
    assert "<h2>A &lt;b&gt;heading</h2>" in html("", BLOCKS)


def test_the_page_loads_nothing_from_elsewhere():
    page = html("a", BLOCKS)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)
    assert "@import" not in page
    assert "<script" not in page


NAME = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    "block",
    [
        f"## {NAME}",
        f"{NAME} after `code`",
        Table([NAME, NAME], [[NAME, NAME]], NAME, frozenset([NAME])),
        Plots([Plot(NAME, NAME, panel(2, 2, lambda axis: axis.set_xlabel(NAME)))]),
        Fold(NAME, f"```\n{NAME}\n```"),
    ],
    ids=["heading", "paragraph", "table", "plots", "fold"],
)
def test_no_name_becomes_a_tag(block):
    assert "<script" not in html(NAME, [block])
    as_html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(markdown([block]))
    assert "<script" not in as_html
    assert "script&gt;alert(1)" in as_html


def test_the_markdown_twin_has_the_same_sections_and_its_figures_beside_it(tmp_path: Path):
    write(tmp_path, "a title", BLOCKS)
    text = (tmp_path / "report.md").read_text()
    assert text == f"# a title\n\n{markdown(BLOCKS)}\n"
    assert "| system | esol<br>r2 |\n| --- | ---: |\n| a&lt;1> | 0.5 |" in text
    assert [(tmp_path / each).read_bytes()[:4] for each in re.findall(r"!\[.*\]\((.*)\)", text)] == [b"\x89PNG"]


def test_a_new_report_leaves_no_figure_of_the_old_one(tmp_path: Path):
    write(tmp_path, "old", BLOCKS)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["line.png"]
    (tmp_path / "figures" / "mine.png").touch()
    write(tmp_path, "new", BLOCKS[:2])
    assert [path.name for path in tmp_path.rglob("*.png")] == ["mine.png"], "what others made stays"


def test_names_of_all_kinds_have_files_of_their_own():
    files = {Plot(name, "", Figure()).file for name in ("a b", "a+b", "a-b", "学", "先", "plain")}
    assert len(files) == 6
    assert "figures/plain.png" in files
