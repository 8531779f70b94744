import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from distill.records import Cost, Record
from distill.report.compare import compare_runs
from distill.report.figures import panel
from distill.report.page import TEMPLATES, Plot, Table, html, markdown, plain, write

TEXT = """# {{ title }}

## {{ heading }}

{{ paragraph }}

{{ table.markdown() }}

{{ plots(drawn) }}

{% for more in notes %}
{{ more }}

{% endfor %}
"""
VALUES = {
    "title": "a title < b",
    "heading": "A <b>heading",
    "paragraph": "what `--flag <x>` does & more: *all* | `[a](b)` [c](d)",
    "table": Table(["system", "esol\nr2"], [["a<1>", "0.5"], ["b", "0.4"]], "a `note`", frozenset(["b"])),
    "drawn": [Plot(name, f'a "{name}"', panel(2, 2, lambda axis: axis.plot([1, 2]))) for name in ("line", "other")],
    "notes": [],
}
VOID = {"meta", "link", "br", "path", "use", "image", "rect"}


def page(**values) -> tuple[str, str]:
    """A report in Markdown and as HTML."""
    text, drawn = markdown(TEMPLATES.from_string(TEXT), **VALUES | values)
    return text, html("a title < b", text, drawn)


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], "", set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_what_was_written_and_closes_every_tag():
    reader = Balanced()
    reader.feed(page()[1])
    assert reader.open == []
    for shown in ("A <b>heading", "what --flag <x> does & more: *all* | [a](b) [c](d)", "a<1>", "a title < b", "a note"):
        assert shown in reader.text
    assert not {"b", "em", "a"} & reader.tags


def test_rows_stand_out_headings_break_and_figures_lie_side_by_side_with_a_label():
    shown = page()[1]
    assert '<td><strong>b</strong></td>\n<td style="text-align:right">0.4</td>' in shown
    assert '<th style="text-align:right">esol<br>r2</th>' in shown
    assert re.search(r'<div class="wide"><table>.*</table></div>\n<p>a <code>note</code></p>', shown, re.DOTALL)
    (figures,) = re.findall(r'<div class="figures">(.*?)</div>', shown, re.DOTALL)
    assert re.findall(r'<figure><svg role="img" aria-label="([^"]*)"', figures) == ["a &#34;line&#34;", "a &#34;other&#34;"]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", figures) == ["a &quot;line&quot;", "a &quot;other&quot;"]


def test_the_page_loads_nothing_from_elsewhere():
    shown = page()[1]
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", shown)
    assert "@import" not in shown
    assert "<script" not in shown


def test_the_markdown_twin_has_the_same_sections_and_its_figures_beside_it(tmp_path: Path):
    write(tmp_path, TEMPLATES.from_string(TEXT), **VALUES)
    text = (tmp_path / "report.md").read_text()
    assert text == page()[0]
    assert (tmp_path / "report.html").read_text().count("<svg") == 2
    assert "| system | esol<br>r2 |\n| --- | ---: |\n| a&lt;1> | 0.5 |\n| **b** | 0.4 |\n\na `note`" in text
    assert [(tmp_path / file).read_bytes()[:4] for file in re.findall(r"!\[.*\]\((.*)\)", text)] == [b"\x89PNG"] * 2


def test_a_new_report_leaves_no_figure_of_the_old_one(tmp_path: Path):
    write(tmp_path, TEMPLATES.from_string(TEXT), **VALUES)
    (tmp_path / "figures" / "mine.png").touch()
    write(tmp_path, TEMPLATES.from_string(TEXT), **VALUES | {"drawn": []})
    assert [path.name for path in tmp_path.rglob("*.png")] == ["mine.png"], "what others made stays"


def test_names_of_all_kinds_have_files_of_their_own():
    files = {Plot(name, "", Figure()).file for name in ("a b", "a+b", "a-b", "学", "先", "plain")}
    assert len(files) == 6
    assert "figures/plain.png" in files


@pytest.mark.parametrize(
    "text",
    [
        *("a*b*c", "<i>", "x | y", "[a](b)", "`<b>` <b> `<b>`", "a ` <b>", "5 < 6 > 4", "2 * 3 * 4", "_a_ b_c __d__"),
        *(r"a \< b \* c", "&lt;b&gt; & c", "![x] y](z.png)", "# a", "<!-- a", "a`<b>``", "`<b>``", "``<b>`", r"\`<b>`"),
    ],
)
def test_a_text_is_shown_as_it_is(text):
    reader = Balanced()
    reader.feed(MarkdownIt("gfm-like", {"linkify": False}).render(plain(text)))
    assert reader.text.strip().replace("`", "") == text.replace("`", "").removeprefix("# ")
    assert reader.tags <= {"p", "code", "h1"}


@pytest.mark.parametrize("text", ["`<script>``", r"\`<script>`", "``<script>`", "a](b.png) <script>", "x\n\n<script>"])
def test_no_backtick_or_bracket_in_a_name_lets_a_tag_or_a_figure_escape(text):
    drawn = [Plot("line", text, panel(1, 1, lambda axis: axis.plot([1, 2])))]
    shown = page(title=text, heading=text, paragraph=text, drawn=drawn, table=Table([text, text], [[text, text]], text))[1]
    assert "<script" not in shown.partition("<body>")[2].replace("&lt;script", "")
    assert shown.count("<figure>") == shown.count("<svg") == 1
    reader = Balanced()
    reader.feed(shown)
    assert reader.open == []


def test_no_name_becomes_a_tag_anywhere_in_a_report(tmp_path):
    name = "<script>alert(1)"
    for number, folder in enumerate((tmp_path / f"{name} a", tmp_path / f"{name} b")):
        systems = {"student": ("student", 0.5), name: ("teachers", 0.4 + number), f"{name}+": ("teachers", 0.3)}
        records = [
            asdict(Record(system, kind, task, "measured", name, seed, name, score, 10, seen_rows=1))
            for system, (kind, score) in systems.items()
            for task in (name, f"{name}'s")
            for seed in (0, 1)
        ]
        corpus = {"teachers": {name: {"class_path": name, "weights_sha256": name}}, "rows": 1, "fingerprint": name}
        about = {"made": name, "device": name, "versions": {name: name}, "corpora": {name: corpus}, "left_out": [name]}
        costs = {system: asdict(Cost(1, 2, 3.0)) for system in systems}
        (folder / "probes").mkdir(parents=True)
        (folder / "probes" / "results.json").write_text(json.dumps(about | {"records": records, "costs": costs}))
        (folder / "config.yaml").write_text(f"a: |\n  ```\n  {name}\n")
        (folder / "metrics.csv").write_text(f"step,train/loss,val/loss,r2/{name}\n1,1,1,0.5\n2,1,1,0.5\n")
        (folder / "conflict.csv").write_text(f"step,teacher_a,teacher_b,cosine\n1,{name},{name},1\n")
    compare_runs([tmp_path / f"{name} a", tmp_path / f"{name} b"], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    headings = ["What it costs", "Training", "Conflicts of the teachers", "What was run"]
    assert re.findall("^## (.*)", text, re.M)[2:] == headings
    for shown in ((tmp_path / "out" / "report.html").read_text(), MarkdownIt("gfm-like", {"linkify": False}).render(text)):
        assert "<script" not in shown
        assert shown.count("script&gt;alert(1)") > 50
