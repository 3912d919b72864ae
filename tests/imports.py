"""What tests of imports share."""

from __future__ import annotations

import ast
from pathlib import Path


def modules_of(package) -> dict[str, Path]:
    """Dotted name → file of every module of a package, folders among them for their `__init__`."""
    root = Path(package.__file__).parent
    files = (path for path in sorted(root.rglob("*.py")) if path != root / "__init__.py")
    return {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in files
    }


def imports_of(path: Path, names: set[str]) -> set[str]:
    """The modules among `names` that a file imports, wherever in the file, but for those that only a checker sees."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & names
