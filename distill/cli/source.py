"""Read what a source file declares without importing it: its module may import torch and Lightning, for seconds."""

import ast
import pkgutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def parameters(path: str) -> list[str]:
    """Names of the parameters of the class ``module:Name``.

    Example:
        >>> parameters("distill.run_folder:RunFolder")
        ['path', 'probes']
    """
    module, _, name = path.partition(":")
    body = _definition(_tree(module), name).body
    start = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return [argument.arg for argument in (*start.args.args[1:], *start.args.kwonlyargs)]


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
    function = _definition(tree, name)
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
    package, *inside = module.split(".")
    spec = find_spec(package)  # not of the module: that would import the packages around it
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise ModuleNotFoundError(f"no package {package}", name=package)
    return ast.parse(Path(folders[0], *inside).with_suffix(".py").read_text(encoding="utf-8"))


def _definition(tree: ast.Module, name: str) -> Any:
    return next(node for node in tree.body if getattr(node, "name", "") == name)
