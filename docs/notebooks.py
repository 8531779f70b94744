"""A hook of MkDocs: each notebook of docs/tutorials becomes a page of the site, with the outputs that are in it."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook; the notebook itself stays, to be downloaded."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        cells = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))["cells"]
        name = Path(file.src_uri).name
        pages = [as_markdown(cell) for cell in cells]
        pages.insert(1, f"[Download this page as a notebook]({name}), or its [source]({name.replace('ipynb', 'py')}).")
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content="\n\n".join(pages)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to a notebook, which GitHub shows, to its page."""
    return re.sub(r"\(tutorials/(\w+)\.ipynb\)", r"(tutorials/\1.md)", markdown)


def as_markdown(cell: dict[str, Any]) -> str:
    """A cell with its outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    shown = [text for output in cell["outputs"] if (text := output_as_markdown(output))]
    return "\n\n".join([f"```python\n{source}\n```", *shown])


def output_as_markdown(output: dict[str, Any]) -> str:
    """An output: a picture, a table, or text; empty for what was logged."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="output" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if table := re.search(r"<table.*</table>", "".join(data.get("text/html", "")), re.DOTALL):
        lines = re.sub(r"<(table|tr)[^>]*>", r"<\1>", table[0]).splitlines()  # the site's style, not that of pandas
        return "".join(line.strip() for line in lines)
    text = "".join(data.get("text/plain", output.get("text", "") if output.get("name") == "stdout" else ""))
    text = re.sub(r"\x1b\[[\d;]*m", "", text)  # colours of a terminal
    return f"```text\n{text.strip()}\n```" if text.strip() else ""
