"""Find what a module of the package can reach: all its imports, late ones too."""

import ast
from functools import cache
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"


@cache
def imports_of(file: Path, *, late: bool = True) -> frozenset[str]:
    """Return the modules of any package that a file imports; `late` adds those in functions."""
    tree = ast.parse(file.read_text())
    nodes = list(ast.walk(tree)) if late else list(_at_import(tree))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def _at_import(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _at_import(child)


def file_of(module: str) -> Path | None:
    """Return the file of a module of the package, None for anything else."""
    path = SRC / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def closure(file: Path, *, late: bool = True) -> set[Path]:
    """Return the files of the package that a file can reach, itself included."""
    found, waiting = set(), [file]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        for module in imports_of(current, late=late):
            target = file_of(module)
            if target:
                waiting.append(target)
                # importing a.b.c runs the __init__ of a and a.b too
                package = target.parent
                while package != SRC:
                    waiting.append(package / "__init__.py")
                    package = package.parent
    return found
