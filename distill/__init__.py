"""The training stage: trains one student under a head per teacher, probes it, and exports it.

``__init__.pyi`` lists the public names; a name's module is imported when the name is first used.
"""

import lazy_loader

from cache_tools import __version__ as __version__  # makes the module names of version 0.1 importable, too

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
