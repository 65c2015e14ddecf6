"""Which room may import which: every arrow between rooms is held against one table."""

import ast
from pathlib import Path

import pytest

import evopress

PACKAGE = Path(evopress.__file__).parent

ALLOWED: dict[str, str] = {
    "runtime": "",
    "weights": "runtime",
    "data": "runtime",
    "models": "runtime",
    "space": "runtime models",
    "compressors": "runtime weights space",
    "database": "runtime weights models space compressors",
    "search": "runtime space",
    "evaluation": "runtime data models space database search",
    "export": "runtime weights models space compressors database",
    "report": "runtime space search",
    "inspection": "runtime space database report",
    "job": "runtime data models space compressors search evaluation export",
    "targets": "space search job",
    "preparation": "runtime data models space compressors database search evaluation export job targets",
    "saved_profile": "runtime space evaluation job",
    "results": "runtime space evaluation job",
    "planning": "runtime data models space compressors search evaluation job targets",
    "pareto": "runtime data space search evaluation report job targets",
    "pipeline": "runtime space search evaluation export report job preparation saved_profile results planning pareto",
    "config": "job",
    "api": "runtime data models space compressors search evaluation export job pipeline",
    "arguments": "",
    "run": "runtime arguments config pipeline",
    "__init__": "api export",
}
"""What each room, or module at the top, may import of the others. A room may always import itself."""


def arrows(path: Path) -> set[tuple[str, str]]:
    """(module, imported module) for everything of the package that a file imports, wherever the import stands."""
    module = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {(module, name.removeprefix("evopress.")) for name in imported if name.startswith("evopress.")}


ARROWS = sorted({arrow for path in PACKAGE.rglob("*.py") for arrow in arrows(path)})


def test_every_room_is_in_the_table():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name not in ("assets", "__pycache__")}
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert rooms | modules == set(ALLOWED)


def test_the_table_allows_no_circle():
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {room for room, others in ALLOWED.items() if room not in done and set(others.split()) <= done}
        assert ready, f"{set(ALLOWED) - done} import each other"
        done |= ready


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_the_table_allows(room):
    wrong = [
        f"{module} imports {imported}"
        for module, imported in ARROWS
        if module.split(".")[0] == room and imported.split(".")[0] not in {room, *ALLOWED[room].split()}
    ]
    assert not wrong


def test_modules_do_not_import_each_other_in_a_circle():
    """Imports inside a function count as well, so none of them can hide a circle."""
    modules = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for path in PACKAGE.rglob("*.py")}
    modules -= {"__init__"}

    def module_of(name: str) -> str | None:
        candidates = (name, f"{name}.__init__", name.rpartition(".")[0], f"{name.rpartition('.')[0]}.__init__")
        return next((candidate for candidate in candidates if candidate in modules), None)

    needs: dict[str, set[str]] = {module: set() for module in modules}
    for module, imported in ARROWS:
        target = module_of(imported)
        if module in modules and target and target != module:
            needs[module].add(target)
    while leaves := {module for module, others in needs.items() if not others}:
        needs = {module: others - leaves for module, others in needs.items() if module not in leaves}
    assert not needs, f"these import each other: {sorted(needs)}"
