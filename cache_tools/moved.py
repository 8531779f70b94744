"""Find names of version 0.1 that moved, for configurations, manifests, exports and users' own modules."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OUTSIDE = {"convnet": "benchmarks/convnet.py of the repository; set PYTHONPATH=benchmarks, so that Python finds it"}

MOVED = {  # module of version 0.1 -> the module or package that its names are looked up in now
    "cache_tools.columns": "cache_tools.inputs",
    "cache_tools.corpus": "cache_tools.corpora.base",
    "cache_tools.images": "cache_tools.items.image",
    "cache_tools.molecules": "cache_tools.items.molecule",
    "cache_tools.network": "cache_tools.teachers.network",
    "cache_tools.reader": "cache_tools.format.reader",
    "cache_tools.statistics": "cache_tools.format.statistics",
    "cache_tools.store": "cache_tools",
    "cache_tools.teacher": "cache_tools.teachers.base",
    "cache_tools.teachers.convnet": "convnet",
    "cache_tools.transfer": "cache_tools.teachers.imported",
    "distill.conflict": "distill.training.conflict",
    "distill.exported": "distill.export.student",
    "distill.guard": "distill.training.guard",
    "distill.labelled": "distill.evaluation.tasks",
    "distill.methods": "distill.heads",
    "distill.methods.consolidation": "distill.heads",
    "distill.methods.densities": "distill.heads",
    "distill.methods.regression": "distill.heads",
    "distill.methods.relations": "distill.heads",
    "distill.methods.unic": "distill.objectives",
    "distill.module": "distill.training.distiller",
    "distill.mteb": "distill.evaluation.mteb",
    "distill.normalize": "distill.targets",
    "distill.objective": "distill.objectives",
    "distill.probes": "distill.evaluation.probes",
    "distill.probing": "distill.evaluation.during",
    "distill.student": "distill.students.base",
    "distill.suites": "distill.evaluation.tasks",
    "distill.tasks": "distill.evaluation.tasks",
}


def current_class_path(class_path: str) -> str:
    """The present import path of the class that version 0.1 called ``class_path``; any other path stays as it is.

    Example:
        >>> current_class_path("cache_tools.columns.Pixels")
        'cache_tools.inputs.pixels.Pixels'
        >>> current_class_path("my_module.MyTeacher")
        'my_module.MyTeacher'
    """
    module, _, name = class_path.rpartition(".")
    home = MOVED.get(module)
    if home is None or (home in OUTSIDE and importlib.util.find_spec(home) is None):
        return class_path
    cls = getattr(importlib.import_module(home), name, None)
    return f"{cls.__module__}.{cls.__qualname__}" if isinstance(cls, type) else class_path


def current_names(content: Any) -> Any:
    """``content``, as JSON has it, with every ``class_path`` in it replaced by :func:`current_class_path`."""
    if isinstance(content, list):
        return [current_names(value) for value in content]
    if not isinstance(content, dict):
        return content
    renamed = {key: current_names(value) for key, value in content.items()}
    path = renamed.get("class_path")
    return renamed | {"class_path": current_class_path(path)} if isinstance(path, str) else renamed


class MovedModules(MetaPathFinder, Loader):
    """Imports a module of version 0.1 as a module whose names are looked up in their present place."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        home = MOVED[module.__name__]

        def look_up(name: str) -> Any:
            try:
                return getattr(importlib.import_module(home), name)
            except AttributeError:
                pass
            except ModuleNotFoundError as error:
                if error.name not in OUTSIDE:
                    raise
            where = OUTSIDE.get(home, home)
            raise AttributeError(f"{module.__name__}.{name} of version 0.1 is no longer there; see {where}")

        module.__getattr__ = look_up  # type: ignore[method-assign]


def install() -> None:
    """Let ``import`` find the modules of version 0.1; called once, when ``cache_tools`` is imported."""
    sys.meta_path.append(MovedModules())  # last: a module that exists is never looked for here
