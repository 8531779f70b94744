"""Set up what both command lines share: where classes are imported from, and logging."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler


def start_console(arguments: Sequence[str] = ()) -> None:
    """Make modules in the current folder and beside the configurations importable, and start logging.

    These folders come last, so a file there that has the name of a library does not stand for it.

    Args:
        arguments: of the command; each ``--config FILE`` names a configuration.
    """
    if sys.path[0] in ("", os.getcwd()):  # where ``python -m`` puts it
        del sys.path[0]
    folders = [os.getcwd(), *(str(Path(config).absolute().parent) for config in _configurations(arguments))]
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    start_logging()


def _configurations(arguments: Sequence[str]) -> Iterator[str]:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        key, _, value = argument.partition("=")
        if key in ("--config", "-c") and os.path.isfile(value or following):
            yield value or following


def start_logging() -> None:
    """Send log records to standard error, and drop warnings that no user can act on."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[handler])
    warnings.filterwarnings(
        "ignore", message=".*does not have many workers.*"
    )  # one process gathers faster than workers send
    warnings.filterwarnings("ignore", message=".*torch.jit.*")  # torch_geometric at import
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")  # `test` needs none
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")  # TensorBoard's logs are kept
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # lightning with a newer torch
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: "Tip: For seamless" not in record.getMessage())  # an advertisement
