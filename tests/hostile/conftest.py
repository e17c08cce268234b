"""Fixtures for tests with hostile files."""

import os

import pytest


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that exists if a hostile file ran code; the test fails if it does."""
    path = tmp_path / "marker"
    monkeypatch.setenv("HOSTILE_MARKER", str(path))
    os.system('touch "$HOSTILE_MARKER"')
    assert path.exists(), "the hostile files of these tests have no effect here"
    path.unlink()
    yield path
    assert not path.exists(), "a file ran code"
