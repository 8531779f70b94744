"""Import of torchmetrics what Lightning takes of it: the rest imports torchvision, transformers and SciPy, for seconds."""

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

TAKEN = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}  # Lightning's, and the heads'


class LightTorchmetrics(MetaPathFinder, Loader):
    """Imports torchmetrics with the names of ``TAKEN``; any other name that is asked for imports the whole library.

    Everything of torchmetrics that worked before works after, at its full price when it is first used. A torchmetrics that
    is built differently is imported whole at once.
    """

    whole: Loader

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == "torchmetrics" else None
        if spec and spec.loader:
            self.whole, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = module.__spec__.loader = self.whole  # type: ignore[union-attr]

        def import_rest(name: str) -> Any:
            vars(module).pop("__getattr__", None)
            self.whole.exec_module(module)
            return getattr(module, name)

        try:
            vars(module)["_logger"] = logging.getLogger("torchmetrics")
            vars(module)["__version__"] = import_module("torchmetrics.__about__").__version__
            import_module("torchmetrics.utilities")  # before the others, which import it in a circle
            for name, home in TAKEN.items():
                vars(module)[name] = getattr(import_module(home), name)
        except (ImportError, AttributeError):
            for name in [name for name in sys.modules if name.startswith("torchmetrics.")]:
                del sys.modules[name]
            self.whole.exec_module(module)
        else:
            vars(module)["__getattr__"] = import_rest


def install() -> None:
    """Let ``import torchmetrics`` be light from now on; for a program of our own, never for a user's Python."""
    if not any(isinstance(finder, LightTorchmetrics) for finder in sys.meta_path):
        sys.meta_path.insert(0, LightTorchmetrics())
