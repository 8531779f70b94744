"""Set up what both command lines share: where classes are imported from, and logging."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from cache_tools.machine import prepare_openmp

OF_NO_USE = (  # what Lightning logs: an advertisement, a device that is not there, steps of its own
    "Tip: For seamless",
    "TPU available: False",
    "Loading `train_dataloader` to estimate",
    "`Trainer.fit` stopped:",
    "Restoring states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "Detected KeyboardInterrupt, attempting graceful",
)

MESSAGES = Console(stderr=True)  # one for log records and bars: a bar makes room for a record only on its own console

CONFIG_KEYS = ("--config", "-c")


def start_console(arguments: Sequence[str] = ()) -> None:
    """Make modules in the current folder and beside the configurations importable, prepare OpenMP, and start logging.

    These folders come last, so a file there that has the name of a library does not stand for it.

    Args:
        arguments: of the command; each ``--config FILE`` names a configuration.
    """
    if sys.path[0] in ("", os.getcwd()):  # where ``python -m`` puts it
        del sys.path[0]
    files = [config for config in configurations(arguments) if os.path.isfile(config)]
    folders = [os.getcwd(), *(str(Path(config).absolute().parent) for config in files)]
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    prepare_openmp()
    start_logging()


def configurations(arguments: Sequence[str]) -> Iterator[str]:
    """The value of each ``--config`` of a command."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        key, equals, value = argument.partition("=")
        if key in CONFIG_KEYS and (equals or following):
            yield value if equals else following


def shows_bars(console: Console) -> bool:
    """Whether a progress bar can be drawn: on a terminal, and in a notebook that has widgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def start_logging() -> None:
    """Send log records to standard error, and drop warnings that no user can act on."""
    handler = RichHandler(console=MESSAGES, show_path=False, show_time=False)
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[handler])
    logging.getLogger("torch").setLevel("WARNING")  # it sets this at the end of its import, which a Ctrl-C may stop
    warnings.filterwarnings(
        "ignore", message=".*does not have many workers.*"
    )  # one process gathers faster than workers send
    warnings.filterwarnings("ignore", message=".*torch.jit.*")  # torch_geometric at import
    warnings.filterwarnings("ignore", message=".*number of training batches .* is smaller than")  # ours says it in words
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")  # `test` needs none
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm in a notebook without ipywidgets
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")  # TensorBoard's logs are kept
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # lightning with a newer torch
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: not any(words in record.getMessage() for words in OF_NO_USE))
    logging.getLogger("lightning.fabric.utilities.seed").setLevel("WARNING")
