"""``distill students``: the students that come with this package, ready to use."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache_tools import CommandParser
from distill.export.folder import RELEASED, WEIGHTS, read_config, released


def main(arguments: list[str]) -> None:
    """Entry point of ``distill students``.

    Args:
        arguments: none.
    """
    CommandParser("distill students", description="List the students that come with this package.").parse_args(arguments)
    table, verdicts = Table(box=box.SIMPLE_HEAD, pad_edge=False), []
    for heading in ("student", "reads", "width", "MB", "CPU ms\nper item", "licence"):
        table.add_column(heading, justify="right" if heading[0] in "wMC" else "left")
    for folder in released():
        config = read_config(folder)
        facts: dict[str, Any] = config.get("facts", {})
        reads = ", ".join(dict.fromkeys(f"{spec['modality']}s" for spec in config["inputs"].values()))
        size = f"{(folder / WEIGHTS).stat().st_size / 1e6:.1f}"
        speed = f"{1000 / facts['per_second']:.2g}" if facts.get("per_second") else "-"
        table.add_row(folder.name, reads, str(config["dim"]), size, speed, facts.get("licence") or "-")
        verdicts += [sentence.replace("`student`", f"`{folder.name}`", 1) for sentence in facts.get("verdicts", ())]
    console = Console(highlight=False)
    console.print(table, *map(Text, verdicts), sep="\n\n")
    console.print('\nUse one: distill.load_student("NAME").embed([...])', markup=False)
    console.print(f"Its model card: {RELEASED}/NAME/README.md", soft_wrap=True)
