"""The cache stage: every teacher once over a corpus, written as HDF5 shards. Knows nothing of training."""

from cache_tools.store import open_column

__all__ = ["open_column"]
