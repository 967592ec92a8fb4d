"""The house holds: imports point down, the web process has no torch, and files stay readable."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("trainer", "app") for path in (ROOT / package).rglob("*.py"))

# What a module may be imported by, from the ground up: each layer sees those before it.
LAYERS: list[tuple[str, ...]] = [
    ("trainer.errors", "trainer.threads"),
    (
        "trainer.files",
        "trainer.fields",
        "trainer.events",
        "trainer.states",
        "trainer.model.embedded",
    ),
    ("trainer.model.bases", "trainer.randomness"),
    ("trainer.settings", "trainer.presets", "trainer.run", "trainer.precision"),
    ("trainer.data", "trainer.adapter", "trainer.model", "trainer.preview"),
    ("trainer.training",),
    ("trainer.cli", "trainer.console", "trainer.demo", "trainer.doctor"),
    ("trainer.__main__",),
]
CONTRACT = {
    "trainer.adapter.footprint", "trainer.model.shapes",
    "trainer.errors", "trainer.files", "trainer.fields", "trainer.events", "trainer.settings",
    "trainer.states",
    "trainer.settings_file",
    "trainer.presets", "trainer.run", "trainer.model.bases", "trainer.model.describe",
    "trainer.preview.request",
    "trainer.preview.grid", "trainer.preview.schedule", "trainer.preview.samplers",
    "trainer.preview.mixing", "trainer.preview.recipe", "trainer.adapter.header",
}  # fmt: skip
WITHOUT_TORCH = (
    "app.check",
    "trainer.adapter.footprint",
    "app.server",
    "app.library",
    "app.previews",
    "app.jobs",
    "trainer.cli",
    "trainer.console",
    "trainer.data.dataset",
    "trainer.data.importing",
    "trainer.data.report",
    "trainer.adapter.header",
    "trainer.adapter.keys",
    "trainer.adapter.metadata",
    "trainer.adapter.recognise",
    "trainer.model.bases",
    "trainer.model.describe",
    "trainer.preview.request",
    "trainer.preview.grid",
    "trainer.training.attempt",
)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            known = ROOT / Path(*node.module.split("."))
            for alias in node.names:
                inner = known / f"{alias.name}.py"
                deeper = inner.exists() or (known / alias.name).is_dir()
                yield f"{node.module}.{alias.name}" if deeper else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _layer(module: str) -> int:
    """The layer of a module: that of its longest known prefix."""
    found = [
        (len(prefix), index)
        for index, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if module == prefix or module.startswith((f"{prefix}.", f"{prefix}_"))
    ]
    return max(found)[1] if found else -1


@pytest.mark.parametrize("path", SOURCES, ids=_module)
def test_imports_point_down(path: Path) -> None:
    module = _module(path)
    for imported in _imports(path):
        if module.startswith("trainer."):
            assert not imported.startswith(("app", "gradio")), f"{module} knows of {imported}"
            if imported.startswith("trainer."):
                assert _layer(imported) <= _layer(module), f"{module} reaches up to {imported}"
        elif module != "app.__main__" and imported.startswith("trainer."):
            allowed = imported in CONTRACT or imported.startswith("trainer.data.")
            assert allowed, f"{module} goes past the contract to {imported}"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_no_torch_where_it_is_not_needed(module: str) -> None:
    script = f"import {module}, sys; sys.exit(bool({{'torch', 'diffusers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("path", SOURCES, ids=_module)
def test_files_and_functions_fit_a_screen_or_two(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "a bare except hides what went wrong"
            assert not all(isinstance(line, ast.Pass) for line in node.body)
