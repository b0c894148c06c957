"""Imports run one way, memfit ← planner ← service → models, and torch stays where it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"memfit", "planner", "service", "models", "migrations"}
MAY_IMPORT = {
    "memfit": set(),
    "planner": {"memfit"},
    "models": set(),
    "service": {"planner", "memfit", "models", "migrations"},
    "migrations": {"models", "service"},
}


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        wrong = imported(file) & (OURS - {package} - MAY_IMPORT[package])
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_only_migrations_and_the_service_import_records() -> None:
    assert all("models" not in imported(file) for file in (ROOT / "migrations").rglob("*.py") if file.name != "env.py")


def modules_after(statement: str) -> set[str]:
    """Top-level modules loaded by a statement, in a fresh interpreter."""
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split())


def test_memfit_needs_torch_alone() -> None:
    extra = {"planner", "service", "models", "scipy", "pydantic", "fastapi", "sqlalchemy", "typer", "rich"}
    loaded = modules_after("import memfit")
    assert "torch" in loaded
    assert not loaded & extra


@pytest.mark.parametrize(
    "module", ["planner.solver", "planner.alternatives", "planner.request", "planner.plan", "service.pipeline", "service.child"]
)
def test_a_plan_is_solved_without_torch(module: str) -> None:
    assert "torch" not in modules_after(f"import {module}")


@pytest.mark.parametrize("module", ["service.app", "service.server", "service.commands", "service.child"])
def test_the_server_and_the_command_line_do_without_torch(module: str) -> None:
    assert "torch" not in modules_after(f"import {module}")


def test_a_server_that_solves_nothing_yet_does_without_the_solver() -> None:
    assert not modules_after("import service.server") & {"highspy", "scipy"}


def test_without_the_service_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from service.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "pip install 'memfit[service]'" in done.stderr
