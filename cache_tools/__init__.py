"""The cache stage: every teacher once over a corpus, written as HDF5 shards. Knows nothing of training."""

from cache_tools.reader import Column, aligned, open_column

__all__ = ["Column", "aligned", "open_column"]
