"""Finding image files in folders and by patterns."""

from pathlib import Path

import pytest

from dcp_clip.utils.image_io import ImageReadError
from dcp_clip.utils.image_listing import list_images


def test_list_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [
        "b/10.jpg",
        "b/2.JPG",
        "b/c/1.png",
        "b/notes.txt",
        "b/.hidden.jpg",
        ".x/1.jpg",
        "a[1].dat",
    ]:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    inside = [Path("b/2.JPG"), Path("b/10.jpg"), Path("b/c/1.png")]
    assert list_images(["."]) == inside
    assert list_images(["b/10.jpg", "b", "./b/2.JPG", str(tmp_path / "b")]) == [
        inside[1],
        inside[0],
        inside[2],
    ]
    assert list_images(["a[1].dat"]) == [Path("a[1].dat")]
    assert list_images(["b/*"]) == inside
    assert list_images(["b/*.jpg"]) == [inside[1]]
    assert list_images(["b/*.txt"]) == [Path("b/notes.txt")]
    assert list_images(["**/*.png"]) == [inside[2]]


@pytest.mark.parametrize("given", ["absent.jpg", "absent/*.png", "empty"])
def test_error_contains_the_input_without_images(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ImageReadError, match=given.replace("*", r"\*")):
        list_images(["a.jpg", given])
    with pytest.raises(ImageReadError, match="no input"):
        list_images([])


def test_heic_files_are_listed(tmp_path):
    for name in ("a.heic", "b.jpg", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images([tmp_path])] == ["a.heic", "b.jpg"]
