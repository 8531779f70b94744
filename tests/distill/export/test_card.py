"""The model card shows names as they are: none becomes a tag, a link or a column."""

from pathlib import Path
from types import SimpleNamespace

from markdown_it import MarkdownIt

from distill.export import card


def test_no_name_becomes_a_tag_a_link_or_a_column_of_a_model_card(tmp_path: Path):
    evil = "<script>alert(1)</script> | [a](http://b) *c* `d"
    producer = {"class_path": "cache_tools.teachers.molecule.Maccs", "init_args": {}, "fingerprint": {}}
    column = SimpleNamespace(dim=3, manifest={"producer": producer})
    corpus = SimpleNamespace(
        corpus=SimpleNamespace(modality="molecule", rows=3, source=evil, fingerprint="0" * 20),
        columns=SimpleNamespace(corpus=Path("c")),
        inputs=SimpleNamespace(name="graph"),
        teachers={evil: column},
    )
    (tmp_path / "metrics.csv").write_text("step,val/loss\n7,1.0\n")
    exported = {
        "checkpoint": {"epoch": 0, "step": 7},
        "inputs": {"graph": {"modality": "molecule"}},
        "dim": 3,
        "teachers": {},
        "student": {"class_path": "distill.students.molecule.GraphStudent"},
    }
    card.write(tmp_path, evil, tmp_path / "checkpoints" / "best.ckpt", {"model": {}}, [corpus], exported)
    text = (tmp_path / "README.md").read_text()
    shown = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert "<script" not in shown
    assert 'href="http://b"' not in shown
    assert "<em>" not in shown
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt; | [a](http://b) *c* `d") == 4
    rows = [line for line in text.splitlines() if line.startswith("|") and "script" in line]
    assert len(rows) == 2
