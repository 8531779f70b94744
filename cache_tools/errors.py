"""The errors that users see; each message says what was expected, what was found, where, and what to do."""

import math
import re
from importlib import metadata

IMPORTED_AS = {
    "open_clip": "open_clip_torch",
    "skimage": "scikit-image",
    "mordred": "mordredcommunity",
}  # module -> its package, where names differ


class QuorumError(Exception):
    """Base of every error that this project raises on purpose; the command lines print it without a traceback."""


class CorpusError(QuorumError):
    """A corpus cannot be read: missing file or column, no rows, ids that repeat."""


class CacheError(QuorumError):
    """A cache is missing, damaged, of a newer format, or made from something else."""


class TeacherError(QuorumError):
    """A teacher cannot be loaded, or returned something that is not an embedding."""


class ConfigError(QuorumError):
    """The parts named in a configuration do not fit together."""


class TrainingError(QuorumError):
    """A run cannot go on: a teacher's loss is not finite, or rose too much."""


def install_hint(message: str) -> str:
    """How to install the library that an error of an import names; empty when no extra of this package brings it.

    Example:
        >>> install_hint("No module named 'rdkit.Chem'")
        ": pip install 'quorum-distill[mol]'"
        >>> install_hint("No module named 'my_teachers'")
        ''
    """
    lacking = re.search(r"No module named '(\w+)", message)
    try:
        lines = (metadata.requires("quorum-distill") or ()) if lacking else ()
    except metadata.PackageNotFoundError:  # these are sources that nobody installed
        lines = ()
    name = IMPORTED_AS.get(lacking[1], lacking[1]) if lacking else ""
    wanted = re.compile(
        rf'{re.sub("[-_]", "[-_]", name)}\W.*extra == "(mol|text|vision|hub|parquet|onnx|eval|mordred)"', re.I
    )
    ways = [f"pip install 'quorum-distill[{found[1]}]'" for line in lines if (found := wanted.match(line))]
    return f": {' or '.join(ways)}" if ways else ""


def above_zero(owner: str, **values: float) -> None:
    """Check that settings are numbers above 0.

    Args:
        owner: the class that they belong to, for the message.
        values: name -> value.

    Raises:
        ConfigError: naming the first setting that is not.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} of {owner} is {value}, expected a number above 0")


class BadItem(Exception):
    """One item that a teacher or featuriser cannot use; the row is masked and listed in ``skipped.csv``."""
