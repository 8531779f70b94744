"""Read what a source file declares without importing it: its module may import torch and Lightning, for seconds."""

import ast
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@cache
def parameters(class_path: str) -> list[str] | None:
    """Names of the parameters of a class; None when the sources do not tell, as of a class that takes any keyword.

    Args:
        class_path: where it can be imported from.

    Example:
        >>> parameters("distill.run_folder.RunFolder")
        ['path', 'probes']
    """
    module, _, name = class_path.rpartition(".")
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return parameters(f"{node.module}.{alias.name}")
        if isinstance(node, ast.ClassDef) and node.name == name:
            starts = [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name == "__init__"]
            known = starts[0].args if starts else ast.arguments([], [], None, [], [], None, [])
            own = [argument.arg for argument in (*known.args[1:], *known.kwonlyargs)]
            if starts and not known.kwarg:
                return own
            inherits = node.bases and isinstance(node.bases[0], ast.Name) and not node.decorator_list
            if not inherits or (starts and not _passes_on(starts[0])):
                return None
            inherited = parameters(f"{module}.{ast.unparse(node.bases[0])}")
            return None if inherited is None else own + inherited
    return None


def _passes_on(start: ast.FunctionDef) -> bool:
    """Whether an ``__init__`` gives any keyword to that of its base class."""
    calls = [
        node for node in ast.walk(start) if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"
    ]
    return any(keyword.arg is None for call in calls for keyword in call.keywords)


def declared(path: str) -> Callable[..., Any]:
    """The function ``module:name`` with its signature and docstring; its module is imported when it is called.

    Only what the signature names is imported at once.

    Example:
        >>> export = declared("distill.export.write:export")
        >>> export.__doc__.partition(";")[0]
        'Write a student to a folder that ``distill.load_student`` loads anywhere'
    """
    module, _, name = path.partition(":")
    tree = _tree(module)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    used = {node.id for node in ast.walk(function.args) if isinstance(node, ast.Name)}
    imports: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name) in used]
            imports += [node] if node.names else []
    function.body[1:] = ast.parse("return pkgutil.resolve_name(path)(**locals())").body  # behind the docstring
    namespace: dict[str, Any] = {"__name__": __name__, "pkgutil": pkgutil, "path": path}
    exec(compile(ast.fix_missing_locations(ast.Module([*imports, function], [])), module, "exec"), namespace)
    outline: Callable[..., Any] = namespace[name]
    return outline


def _tree(module: str) -> ast.Module:
    """The source of a module; empty when there is none."""
    package, *inside = module.split(".")
    try:
        spec = find_spec(package)  # not of the module: that would import the packages around it
    except ValueError:  # no name, or the program itself
        spec = None
    if not spec or not spec.origin:
        return ast.Module([], [])
    folder = Path(spec.origin).parent.joinpath(*inside)
    files = [folder.with_suffix(".py"), folder / "__init__.py"] if inside else [Path(spec.origin)]
    sources = [file.read_text(encoding="utf-8") for file in files if file.suffix == ".py" and file.is_file()]
    return ast.parse(sources[0]) if sources else ast.Module([], [])
