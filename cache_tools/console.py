"""Set up what both command lines share: where classes are imported from, and logging."""

import logging
import sys
import warnings

from rich.console import Console
from rich.logging import RichHandler


def start_console() -> None:
    """Make modules in the current folder importable, as ``python -m`` does, and start logging."""
    sys.path.insert(0, "")
    start_logging()


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
