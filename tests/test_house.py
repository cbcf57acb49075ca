"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("edgegemma", "quant", "export", "bench")
FILE_LINES = 350
BODY_LINES = 50  # about a screen, without the docstring
HEAVY = ("numpy", "numba", "llvmlite", "onnx", "onnxruntime", "sounddevice", "tokenizers")


def sources(*folders: str) -> Iterator[Path]:
    """Every Python file of these folders that is part of the project."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a file."""
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def child(code: str) -> str:
    """Run code in a Python of its own; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_no_file_is_too_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in sources(*SHIPPED, "train", "tests", ".ci")
    }
    assert {name: n for name, n in lengths.items() if n > FILE_LINES} == {}


def test_functions_fit_a_screen() -> None:
    long = {}
    for path in sources(*SHIPPED):
        for function in functions(ast.parse(path.read_text())):
            body = function.body[bool(ast.get_docstring(function)) :]
            length = (function.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if length > BODY_LINES:
                long[f"{path.relative_to(ROOT)}:{function.name}"] = length
    assert long == {}


def test_imports_are_absolute() -> None:
    relative = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources(*SHIPPED, "train", "tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_children_import_nothing_from_the_folder_one_is_in() -> None:
    started = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources(*SHIPPED)
        for line in path.read_text().splitlines()
        if 'sys.executable, "-m"' in line
    ]
    assert started == []


def test_no_module_is_named_after_the_standard_library() -> None:
    # Running such a folder's file directly would put the name before Python's own.
    clash = [
        str(path.relative_to(ROOT))
        for path in sources(*SHIPPED, "train", "tests")
        if path.stem in sys.stdlib_module_names and path.stem != "__main__"
    ]
    assert clash == []


def kernels(path: Path) -> set[str]:
    """Names of the functions of a file that anyone may call and that give arrays of floats."""
    body = ast.parse(path.read_text()).body
    public = (n for n in body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))
    return {node.name for node in public if node.returns and "F32" in ast.unparse(node.returns)}


def test_every_public_kernel_has_a_twin_in_numpy() -> None:
    files = list((ROOT / "edgegemma" / "kernels").glob("*.py"))
    twins = {n for path in files if path.stem.startswith("reference") for n in kernels(path)}
    ours = [path for path in files if not path.stem.startswith("reference")]
    assert {f"{path.stem}.{name}" for path in ours for name in kernels(path) - twins} == set()


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, edgegemma.cli, edgegemma.cli.app; print(*sys.modules)"
    loaded = set(child(code).split())
    assert "edgegemma.cli.app" in loaded
    assert loaded & set(HEAVY) == set()


def test_the_package_runs_as_a_module() -> None:
    code = "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('edgegemma', run_name='__main__')"
    assert child(code).startswith("edgegemma ")


def test_help_answers_well_under_half_a_second() -> None:
    """In CPU time of the child, best of five: other work on the machine does not count."""
    code = "import sys; from edgegemma.cli.main import main; sys.argv = ['edgegemma', '--help']; main()"
    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "transcribe" in child(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.45


@pytest.mark.parametrize("package", SHIPPED)
def test_packages_are_real_and_say_what_they_are(package: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))
    assert docstring
