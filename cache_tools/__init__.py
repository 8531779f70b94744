"""The cache stage: run every teacher once over a corpus and write the embeddings as HDF5 shards.

``__init__.pyi`` lists the public names; a name's module is imported when the name is first used.
"""

import lazy_loader

from cache_tools import moved

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

moved.install()
