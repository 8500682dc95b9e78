"""What keeps the house in order: light rooms stay light, files stay small, names say what a thing is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "whet"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LIGHT = ("errors", "schema", "config", "runs", "report", "estimate", "cli")
FILE_LINES, FUNCTION_LINES = 350, 70
"""A ratchet: what is there fits; lower them when it can be lower."""


def test_light_rooms_import_without_torch() -> None:
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in LIGHT
    ]
    assert len(modules) > 20
    code = f"import sys\nfrom importlib import import_module\nfor name in {modules!r}: import_module(name)\n"
    code += "print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert result.stdout.strip() == "False", result.stderr


def test_importing_whet_loads_no_models_and_no_plans() -> None:
    code = "import sys, whet\nprint(sorted({'torch', 'pydantic', 'yaml'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert result.stdout.strip() == "[]"


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    odd = [path for path in SOURCES if path.stem.strip("_") in ("utils", "util", "helpers", "helper", "common", "misc")]
    assert odd == []


def test_files_and_functions_can_be_read_in_one_sitting() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= FILE_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < FUNCTION_LINES, f"{path}: {node.name}"


def test_every_module_says_what_it_is() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or ast.get_docstring(ast.parse(text)), path
        assert "TODO" not in text and "FIXME" not in text, path
