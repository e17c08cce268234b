"""Imports inside the package only point down the layers and form no circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dcp_clip"
# From high to low. A module may import from its own part and from the parts on lower lines. Parts
# on the same line do not import each other.
LAYERS = [
    {"bulk"},
    {"geo", "video"},
    {"folder_run", "app"},
    {"predictor"},
    {"hub"},
    {"benchmarking", "experiments"},
    {"emoji_scenes"},
    {"model_zoo"},
    {"config"},
    {"engine", "export"},
    {"evaluation"},
    {"modeling", "data", "prediction"},
    {"structures", "formats", "runtime"},
    {"found_categories"},
    {"utils"},
    {"vocabulary"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# Importing `dcp_clip` itself is for users: inside the package it would be a circle.
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def imported_modules(node: ast.AST) -> list[str]:
    """Return the absolute names that an import statement imports: modules, and names in them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module}.{alias.name}" for alias in node.names]


def import_statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Return all import statements of a file, also those inside functions and conditions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def own_imports(module: str) -> list[str]:
    """Return the modules of the package that a module imports.

    ``from dcp_clip.data import x`` imports ``dcp_clip.data.x`` if this is a module, else
    ``dcp_clip.data``.
    """
    found = []
    for node in import_statements(MODULES[module]):
        for name in imported_modules(node):
            if name.split(".")[0] == "dcp_clip" and name != "dcp_clip.__version__":
                found.append(name if name in MODULES else name.rpartition(".")[0])
    return found


def part(module: str) -> str:
    return module.split(".")[1]


def test_every_part_has_a_layer():
    assert {part(module) for module in MODULES} <= set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for name in own_imports(module):
        assert name in MODULES, f"{module} imports {name}; import the module that defines the name"
        own, other = part(module), part(name)
        assert own == other or LEVEL[own] < LEVEL[other], f"{module} may not import {name}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute_and_at_the_top(module):
    path = MODULES[module]
    for node in import_statements(path):
        assert not getattr(node, "level", 0), f"{path}:{node.lineno}: relative import"
        own = [name for name in imported_modules(node) if name.split(".")[0] == "dcp_clip"]
        at_top = node.col_offset == 0
        assert at_top or not own, f"{path}:{node.lineno}: import {own} at the top of the file"


def test_no_circle():
    """No module imports itself through others."""
    imports = {module: set(own_imports(module)) & set(MODULES) for module in MODULES}
    finished: set[str] = set()

    def visit(module: str, chain: list[str]) -> None:
        assert module not in chain, " imports ".join([*chain[chain.index(module) :], module])
        if module in finished:
            return
        for name in sorted(imports[module]):
            visit(name, [*chain, module])
        finished.add(module)

    for module in MODULES:
        visit(module, [])


def test_programs_are_not_imported():
    """Programs are the top layer: the package imports none of them."""
    folders = [ROOT / name for name in ("demo", "tools", "datasets")]
    programs = {path.stem for folder in folders for path in folder.glob("*.py")} | {"train_net"}
    for module, path in MODULES.items():
        for node in import_statements(path):
            names = {name.split(".")[0] for name in imported_modules(node)}
            assert not names & programs, f"{module} imports a program"


def test_the_package_does_not_import_the_programs_of_the_command():
    """Importing `dcp_clip` takes seconds, so `dcp_clip_cli` parses arguments before it does so."""
    for module, path in MODULES.items():
        names = [name for node in import_statements(path) for name in imported_modules(node)]
        assert not [n for n in names if n.split(".")[0] == "dcp_clip_cli"], module
