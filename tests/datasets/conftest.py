"""Fixtures that write and prepare miniature benchmarks."""

import pytest
from helpers.benchmarks import MAKERS


@pytest.fixture
def make_case(tmp_path):
    """``make_case("pascal_voc", **options)``: a Case under ``tmp_path / "in"``."""

    def make(name, folder="in", **options):
        return MAKERS[name](tmp_path / folder, **options)

    return make


@pytest.fixture(params=MAKERS)
def case(request, make_case):
    """Each benchmark in turn."""
    return make_case(request.param)


@pytest.fixture
def contents():
    """``contents(folder)``: the bytes of all files below it, by relative path."""

    def read(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return read


@pytest.fixture
def main_of(monkeypatch, load_program):
    """``main_of(case)``: the program's main() with the miniature's counts as the official ones."""

    def make(case):
        program = load_program(case.program)
        for key in ("image_counts", "image_count"):
            if key in case.kwargs:
                monkeypatch.setitem(case.prepare.__kwdefaults__, key, case.kwargs[key])
        if "val_ids" in case.kwargs:
            monkeypatch.setattr(program, "VAL_IDS", case.kwargs["val_ids"])
        return program.main

    return make
