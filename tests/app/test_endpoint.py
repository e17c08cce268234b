"""The endpoint /segment, through gradio_client, and the headers of the server."""

import asyncio
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[app]'")
import gradio
import gradio_client

from dcp_clip.app.server import MAX_UPLOAD_BYTES, PageOnly

STREETS, DRAWINGS = "Streets (CamVid)", "Drawings (EmojiScenes)"


@pytest.fixture(scope="module")
def client(page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    return gradio_client.Client(page.local_url, download_files=str(folder), verbose=False)


@pytest.fixture
def segment(client, fox):
    def run(names="fox; volcano; wallpaper", image=fox, **options):
        file = gradio_client.handle_file(str(image))
        return client.predict(image=file, names=names, api_name="/segment", **options)

    return run


def test_only_the_documented_endpoint_is_public(client):
    api = client.view_api(return_format="dict")
    assert list(api["named_endpoints"]) == ["/segment"] and not api["unnamed_endpoints"]
    parameters = api["named_endpoints"]["/segment"]["parameters"]
    assert [parameter["parameter_name"] for parameter in parameters] == [
        *("image", "names", "model", "unknown_below", "file_format")
    ]


def test_answer_is_that_of_the_predictor(segment, models, fox):
    result, path = segment(model=DRAWINGS, unknown_below=0.7)
    expected = models.get(DRAWINGS)(fox, vocabulary="fox; volcano; wallpaper", unknown_below=0.7)
    np.testing.assert_array_equal(np.array(Image.open(path)), expected.label_map)
    assert {region["name"]: region["share"] for region in result["regions"]} == {
        category.name: round(category.share, 5) for category in expected.found
    }
    assert (result["width"], result["height"]) == (512, 512)
    assert path.endswith("fox_labels.png")
    # The first model and no unknown pixels, if they are not given.
    result, path = segment(file_format="coco")
    assert "unknown" not in str(result) or not any(r["unknown"] for r in result["regions"])
    with open(path, encoding="utf-8") as f:
        assert len(json.load(f)["categories"]) == 3


def test_errors_are_sentences(segment, client, bad_files):
    for path in bad_files:
        with pytest.raises(gradio_client.exceptions.AppError, match=path.name) as raised:
            segment(image=path)
        message = str(raised.value)
        assert "Traceback" not in message and "\n" not in message and "/gradio/" not in message
    for names, expected in (("", "Type one or more names"), ("a/b", "looks like a path")):
        with pytest.raises(gradio_client.exceptions.AppError, match=expected):
            segment(names)
    with pytest.raises(gradio_client.exceptions.AppError, match="Give an image"):
        client.predict(image=None, names="sky", api_name="/segment")
    with pytest.raises(gradio_client.exceptions.AppError, match="Type one or more names"):
        segment(names=None)


def test_errors_of_the_program_show_no_details(segment, models, monkeypatch, caplog):
    def fail(title):
        raise RuntimeError("secret")

    monkeypatch.setattr(models, "get", fail)
    with pytest.raises(gradio_client.exceptions.AppError, match="terminal") as raised:
        segment()
    assert "secret" not in str(raised.value) and "secret" in caplog.text


def test_the_server_loads_no_addresses(client, monkeypatch):
    async def refuse(*args, **kwargs):
        pytest.fail("the server connects")

    monkeypatch.setattr(gradio.processing_utils, "async_ssrf_protected_download", refuse)
    image = {"path": "https://example.com/a.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(gradio_client.exceptions.AppError, match="Upload the image"):
        client.predict(image=image, names="sky", api_name="/segment")


def test_two_users_at_once(segment):
    """Answers do not mix, whatever the order of the requests."""
    questions = [("fox; volcano", DRAWINGS), ("sky; road; tree", STREETS), ("wall; dog", DRAWINGS)]

    def ask(question):
        names, model = question
        return {region["name"] for region in segment(names, model=model)[0]["regions"]}

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, 2 * questions))
    for (names, _), found in zip(2 * questions, answers, strict=True):
        assert found <= set(names.split("; "))


def test_page_is_local(page):
    assert page.local_url.startswith("http://127.0.0.1:") and page.share_url is None
    assert page.server_name == "127.0.0.1"
    assert not page.analytics_enabled
    with urllib.request.urlopen(page.local_url) as response:
        assert "default-src 'self'" in response.headers["content-security-policy"]
        config = response.read().decode()
    assert "fonts.googleapis.com" not in config


@pytest.mark.parametrize("path", ["gradio_api/upload", "gradio_api/queue/join"])
def test_large_requests_are_refused(page, path):
    """The answer comes before the content, which is never sent."""
    request = urllib.request.Request(page.local_url + path, data=b"x", method="POST")
    request.add_header("Content-Length", str(MAX_UPLOAD_BYTES + 200_000))
    with pytest.raises(urllib.error.HTTPError, match="413") as raised:
        urllib.request.urlopen(request)
    assert "too large" in raised.value.read().decode()


def test_large_requests_without_a_length_are_refused():
    """A request in chunks; the application would read all of it."""
    from starlette.exceptions import HTTPException

    read = []

    async def application(scope, receive, send):
        while (await receive())["more_body"]:
            read.append(1)

    async def receive():
        return {"type": "http.request", "body": bytes(1_000_000), "more_body": len(read) < 99}

    with pytest.raises(HTTPException, match="413: The upload is too large"):
        asyncio.run(PageOnly(application)({"type": "http", "headers": []}, receive, None))
    assert len(read) == MAX_UPLOAD_BYTES // 1_000_000
