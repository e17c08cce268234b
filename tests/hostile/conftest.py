"""Fixtures for tests with hostile files."""

import logging
import os

import pytest
from detectron2.utils.logger import setup_logger


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


@pytest.fixture(autouse=True)
def loggers():
    """Programs change loggers, whose messages later tests read; change them back."""
    found = [logging.getLogger(name) for name in ("fvcore", "detectron2", "dcp_clip")]
    states = [(logger.handlers[:], logger.propagate, logger.level) for logger in found]
    yield
    setup_logger.cache_clear()
    for logger, (handlers, propagate, level) in zip(found, states, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
