"""Imports go featcache <- heads <- pipelines and never back, and plug-ins never import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("featcache", "heads", "pipelines")
PLUGIN_FOLDERS = (
    "featcache/corpora",
    "featcache/streams",
    "featcache/aligners",
    "featcache/backends",
    "heads/encoders",
    "heads/models",
)


def imported(source: str) -> set[str]:
    """Return the dotted names a module imports, wherever in it; ``from a import b`` counts as ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def backward(package: str, source: str) -> list[str]:
    """Return imports of packages that stand above a package."""
    above = LAYERS[LAYERS.index(package) + 1 :]
    return sorted(name for name in imported(source) if name.split(".")[0] in above)


def sideways(path: Path, source: str) -> list[str]:
    """Return imports of other plug-ins of the same folder."""
    folder = ".".join(path.parent.parts)
    others = {f"{folder}.{other.stem}" for other in (ROOT / path.parent).glob("[!_]*.py") if other.stem != path.stem}
    return sorted(imported(source) & others)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_never_go_back(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not backward(package, path.read_text()), path


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS)
def test_plugins_never_import_each_other(folder: str) -> None:
    files = sorted((ROOT / folder).glob("[!_]*.py"))
    assert files
    for path in files:
        relative = path.relative_to(ROOT)
        assert not sideways(relative, path.read_text()), path


def test_the_checks_can_fail() -> None:
    assert backward("featcache", "def f():\n    from heads.fit import fit\n") == ["heads.fit", "heads.fit.fit"]
    assert backward("heads", "import featcache, pipelines.cli") == ["pipelines.cli"]
    assert sideways(Path("heads/models/svm.py"), "from heads.models import layer_mix") == ["heads.models.layer_mix"]
