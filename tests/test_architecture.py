"""Which room may import which, and which library is used where: one table each."""

import ast
from pathlib import Path

import pytest

import evopress

PACKAGE = Path(evopress.__file__).parent

ALLOWED: dict[str, str] = {
    "runtime": "",
    "weights": "",
    "data": "runtime",
    "models": "runtime",
    "space": "runtime models",
    "imports": "runtime weights",
    "compressors": "runtime weights space imports",
    "database": "runtime weights models space compressors",
    "search": "runtime space",
    "evaluation": "runtime data models space database search",
    "export": "runtime weights models space compressors database",
    "tuning": "runtime weights models space database evaluation",
    "report": "runtime search evaluation",
    "inspection": "runtime space database report",
    "engines": "runtime models space evaluation export",
    "job": "runtime data models space compressors search evaluation export engines tuning",
    "targets": "space search job",
    "identity": "runtime data models space compressors database evaluation job",
    "start_checks": "runtime data models space search evaluation export job targets",
    "preparation": "runtime data models space compressors database evaluation identity job planning",
    "saved_profile": "runtime space",
    "results": "runtime models data space evaluation identity job",
    "tune_limit": "runtime space evaluation job tuning",
    "tune_stage": "runtime space tune_limit evaluation identity job tuning",
    "planning": "runtime weights data models space compressors database search evaluation export tuning job targets",
    "pareto": "runtime space search evaluation report job targets",
    "search_stage": "runtime space search evaluation identity job saved_profile",
    "engine_stage": "runtime space evaluation export engines job",
    "evaluate_stage": "runtime data space database search evaluation export report job results tune_stage engine_stage",
    "pipeline": "runtime space evaluation export job start_checks preparation planning pareto search_stage tune_limit "
    "tune_stage evaluate_stage",
    "config": "runtime job",
    "api": "runtime data models space compressors search evaluation export tuning job pipeline",
    "arguments": "",
    "run": "runtime arguments config pipeline",
    "__init__": "api export",
}
"""What each room, or module at the top, may import of the others. A room may always import itself."""

LIBRARIES: dict[str, str] = {
    "hydra": "config run",
    "omegaconf": "config run",
    "wandb": "runtime.tracking",
    "pickle": "",
}
"""The only modules that may import a library."""

CODE_RUNNERS = ("torch.load", "eval", "exec", "yaml.load")
"""Functions that can run code from a file."""


def module_name(path: Path) -> str:
    """runtime/files.py → runtime.files"""
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def imported_names(source: str) -> set[str]:
    """Every module, or name in a module, that a source file imports, at the top or inside a function."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    return imported


ARROWS = sorted(
    (module, name.removeprefix("evopress."))
    for module, source in SOURCES.items()
    for name in imported_names(source)
    if name.startswith("evopress.")
)
"""(module, what it imports of evopress)."""


def test_every_room_is_in_the_table():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name not in ("assets", "__pycache__")}
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert rooms | modules == set(ALLOWED)


def test_the_table_allows_no_cycle():
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {room for room, imported in ALLOWED.items() if room not in done and set(imported.split()) <= done}
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


def test_every_arrow_in_the_table_is_used():
    used = {(module.split(".")[0], imported.split(".")[0]) for module, imported in ARROWS}
    allowed = {(room, imported) for room in ALLOWED for imported in ALLOWED[room].split()}
    assert not allowed - used, "remove these from the table"


def test_modules_do_not_import_each_other_in_a_cycle():
    """Imports inside functions count too, so that none of them hides a cycle."""
    modules = SOURCES.keys() - {"__init__"}

    def module_of(name: str) -> str | None:
        parent = name.rpartition(".")[0]
        candidates = (name, f"{name}.__init__", parent, f"{parent}.__init__")
        return next((candidate for candidate in candidates if candidate in modules), None)

    needs: dict[str, set[str]] = {module: set() for module in modules}
    for module, imported in ARROWS:
        target = module_of(imported)
        if module in modules and target and target != module:
            needs[module].add(target)
    while leaves := {module for module, imported in needs.items() if not imported}:
        needs = {module: imported - leaves for module, imported in needs.items() if module not in leaves}
    assert not needs, f"these import each other: {sorted(needs)}"


@pytest.mark.parametrize(("library", "modules"), LIBRARIES.items())
def test_a_library_is_imported_only_where_the_table_allows(library, modules):
    users = {
        module
        for module, source in SOURCES.items()
        if library in {name.split(".")[0] for name in imported_names(source)}
    }
    assert users <= set(modules.split())


LOADERS = {"models.pretrained", "models.checkpoints", "models.gguf"}
"""The modules that let transformers read a folder: they say that its code is not trusted and pickles are not opened."""


def test_transformers_reads_folders_only_where_the_arguments_are_checked():
    callers = {
        module
        for module, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
    }
    assert callers <= LOADERS


def test_no_function_that_can_run_code_from_a_file_is_called():
    calls = [
        f"{module}:{node.lineno}"
        for module, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CODE_RUNNERS
    ]
    assert not calls
