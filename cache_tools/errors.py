"""The errors that users see; each message says what was expected, what was found, where, and what to do."""

import math


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
