"""One server of the page with the shipped models, for all tests."""

import shutil

import pytest
from PIL import Image

from dcp_clip.app.models import Models
from dcp_clip.app.samples import find_samples

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def fox():
    """A drawing that ships with the page: its path."""
    return find_samples()[1].path


@pytest.fixture(scope="session")
def models():
    """The models with shipped weights."""
    return Models.at_hand()


@pytest.fixture(scope="session")
def page(models, tmp_path_factory):
    """The running page."""
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[app]'")
    from dcp_clip.app.server import serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        # The samples are not in the current folder, as in an installed package.
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        page = serve(models)
        yield page
        page.close()


@pytest.fixture(scope="session")
def browser(page):
    """A Chromium that is controlled by Playwright."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is missing: pip install playwright"
    )
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory):
    """Files that are no images, by kind."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.png").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (64, 64), "red").save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:90])
    return [folder / name for name in ("text.png", "empty.jpg", "cut.png")]
