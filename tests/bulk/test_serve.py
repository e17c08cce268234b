"""The service in docs/serving.md."""

import json
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")
ROOT = Path(__file__).parents[2]


def post(url, content):
    """Return the status and the content of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_example_answers(cluster, photographs):
    text = (ROOT / "docs" / "serving.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    namespace = {"__name__": "__main__"}  # so that Ray sends the class itself to the workers
    exec(compile(code.replace("num_replicas=2", "num_replicas=1"), "service.py", "exec"), namespace)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"port": port, "host": "127.0.0.1"})
    try:
        serve.run(namespace["app"])
        url = f"http://127.0.0.1:{port}/?vocabulary=sky;tree"
        image = photographs / "photos" / "0.png"
        status, found = post(url, image.read_bytes())
        assert status == 200 and [row["name"] for row in found["categories"]] == ["sky", "tree"]
        height, width = found["images"][0]["height"], found["images"][0]["width"]
        assert sum(row["area"] for row in found["annotations"]) == height * width == 40 * 56
        status, found = post(url, b"no image")
        assert status == 400 and "cannot read the image: it is not an image" in found["error"]
        status, found = post(url.replace("sky;tree", ""), image.read_bytes())
        assert status == 400 and found["error"]
    finally:
        serve.shutdown()
