"""What a user sees in a terminal: pages that fit it, bars that leave log records whole, and the command that comes next."""

import inspect
import logging
import re
from string import Formatter

import pytest

import cache_tools.cli
import distill.cli
import distill.heads
from cache_tools import MESSAGES, CommandParser
from cache_tools.arguments import fitted
from cache_tools.building.progress import Meter
from cache_tools.console import start_logging
from distill.cli.functions import FUNCTIONS, NEXT, told
from distill.cli.source import declared


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("page", [cache_tools.cli.HELP, distill.cli.HELP], ids=["distill-cache", "distill"])
def test_the_list_of_commands_breaks_no_word_and_goes_on_below_its_descriptions(page, width):
    shown = fitted(page, width)
    assert shown.split() == page.split()
    assert max(map(len, shown.splitlines())) <= width
    below = {len(line) - len(line.lstrip()) for line in shown.splitlines() if line.startswith("   ")}
    described = {match.end() - match.start() for match in re.finditer(r"^  \S+ +", page, re.M)}  # where descriptions begin
    assert below <= described


def test_a_bar_and_log_records_share_a_console_so_that_neither_cuts_the_other():
    start_logging()
    assert Meter("maccs", 10).console is MESSAGES


@pytest.mark.parametrize("command", NEXT)
def test_the_next_command_names_arguments_that_its_command_has(command):
    named = {field for _, field, _, _ in Formatter().parse(NEXT[command]) if field}
    assert named <= inspect.signature(declared(FUNCTIONS[command])).parameters.keys()


def test_a_command_ends_with_the_next_one_and_keeps_its_signature(caplog):
    def export(out: str, heads: bool = False) -> None:
        """Write."""

    caplog.set_level(logging.INFO)
    command = told(export, NEXT["export"])
    assert inspect.signature(command) == inspect.signature(export)
    command(out="student")
    assert caplog.messages == ["next: distill embed --student student --input FILE --out embeddings.parquet"]


@pytest.mark.parametrize(("run", "named"), [(None, "RUN"), ("runs/a", "runs/a")])
def test_the_next_command_names_the_run_that_was_given(caplog, run, named):
    caplog.set_level(logging.INFO)
    told(lambda run, share: None, NEXT["average"])(run=run, share=0.5)
    assert caplog.messages[0].startswith(f"next: distill test --ckpt_path {named}/checkpoints/average.ckpt")


@pytest.mark.parametrize("options", ["", ", init_args=Namespace(layers=2)"])
def test_a_head_that_is_not_there_is_answered_with_one_that_is_spelt_nearly_so(options, capsys):
    """The words are jsonargparse's."""
    found = f"has no attribute. Got value: Namespace(class_path='distill.heads.CosinHead'{options})"
    with pytest.raises(SystemExit):
        CommandParser("distill fit").error(f'Parser key "model.head":\n  the module {found}')
    assert "did you mean distill.heads.regression.CosineHead" in capsys.readouterr().err
