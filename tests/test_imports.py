"""Who may import whom."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent


def imports() -> dict[str, set[str]]:
    """By module of router and training, the modules of these that it imports, also for types and within functions."""
    names = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for part in ("router", "training")
        for path in (ROOT / part).rglob("*.py")
    }
    modules = set(names.values())
    found: dict[str, set[str]] = {}
    for path, name in names.items():
        asked: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                asked |= inner & modules or {node.module}
        found[name] = asked & modules - {name}
    return found


def test_no_import_goes_in_a_circle():
    TopologicalSorter(imports()).prepare()  # raises CycleError, which names the modules


def test_the_router_never_imports_training():
    asked = {module: names for module, names in imports().items() if module.startswith("router")}
    assert len(asked) > 50
    assert not {name for names in asked.values() for name in names if name.startswith("training")}
