"""The documentation builds without a warning: no broken link and no page outside the menu."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def test_links_to_source_files_lead_to_pages(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "source/dcp_clip/modeling/stages/" in page
    assert (site / "source/dcp_clip/modeling/stages/stage1_proposal.py/index.html").is_file()


def test_api_page_has_docstrings_and_types(site):
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("predictor.Predictor", "model_zoo.get_weights", "modeling.meta_arch.DCPCLIP"):
        assert f'id="dcp_clip.{name}"' in page, name


def test_nothing_is_loaded_from_other_servers(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    for tag in ("<script src=", '<link rel="stylesheet" href=', "<img src="):
        for rest in page.split(tag)[1:]:
            assert not rest.lstrip('"').startswith(("http:", "https:", "//")), rest[:80]
