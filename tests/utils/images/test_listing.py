"""Finding image files in folders and by patterns."""

import os
from pathlib import Path

import pytest

from dcp_clip.utils.images.listing import list_images, list_images_by_input, search_root
from dcp_clip.utils.images.reading import ImageReadError


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def link(path: str, target: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, path)


def listed(*inputs: str) -> list[str]:
    return [path.as_posix() for path in list_images(inputs)]


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
    assert list_images(["**/c*"]) == list_images(["**/c"]) == [inside[2]]
    assert list_images(["**/*"]) == list_images(["**"]) == inside


@pytest.mark.parametrize("given", ["absent.jpg", "absent/*.png", "empty"])
def test_error_contains_the_input_without_images(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ImageReadError, match=given.replace("*", r"\*")):
        list_images(["a.jpg", given])
    with pytest.raises(ImageReadError, match="no input"):
        list_images([])


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for given in (os.devnull, tmp_path / "pipe"):
        with pytest.raises(ImageReadError, match=f"{given}: it is a pipe or a device"):
            list_images([given])


def test_a_folder_of_videos_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch("clips/s/a.MP4", "clips/notes.txt")
    with pytest.raises(ImageReadError, match=r"quoted pattern such as 'clips/s/\*\.MP4'"):
        list_images(["clips"])


@pytest.mark.parametrize("given", ["clips/*", "cl*/*", "**/*"])
def test_a_pattern_that_matches_videos_only_is_explained(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    touch("clips/a.mp4", "clips/notes.txt")
    with pytest.raises(ImageReadError, match=r"no image file, but videos: .* 'clips/\*\.mp4'"):
        listed(given)


def test_heic_files_are_listed(tmp_path):
    for name in ("a.heic", "b.jpg", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images([tmp_path])] == ["a.heic", "b.jpg"]


def test_links_to_folders_and_files_are_followed(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    touch("other/1.jpg", "other/s/2.jpg", "one.jpg")
    link("in/folder", "../other")
    link("in/file.jpg", "../one.jpg")
    expected = ["in/file.jpg", "in/folder/1.jpg", "in/folder/s/2.jpg"]
    assert listed("in") == listed("in/*") == listed("in/**/*.jpg") == listed("in/**") == expected
    link("root", "in")
    assert listed("root") == [name.replace("in/", "root/", 1) for name in expected]
    assert not caplog.records


@pytest.mark.parametrize("given", ["in", "in/**/*.jpg", "in/**", "i*"])
def test_each_file_is_listed_once(tmp_path, monkeypatch, caplog, given):
    """Links to parents would otherwise lead to each image again and again."""
    monkeypatch.chdir(tmp_path)
    touch("in/b/1.jpg", "in/b/c/2.jpg")
    link("in/a", "b")  # comes before "b" in the order of names
    link("in/b/c/up", "../..")
    link("in/b/c/up too", "..")
    link("in/self", ".")
    link("in/b/1 again.jpg", "1.jpg")
    assert listed(given) == ["in/b/1.jpg", "in/b/c/2.jpg"]
    (message,) = (record.message for record in caplog.records)
    assert message.startswith("Skipped 5 links; the first is in/")


def test_files_of_several_inputs_are_listed_once(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    touch("a/1.jpg")
    link("b", "a")
    link("c/x.jpg", "../a/1.jpg")
    assert list_images_by_input(["a", "b", "c/x.jpg"]) == {Path("a/1.jpg"): "a"}
    assert "Skipped 2 links; the first is b/1.jpg: it is the same file as a/1.jpg." in caplog.text
    caplog.clear()
    assert listed("a", "a/1.jpg", "./a/*.jpg", str(tmp_path / "a")) == ["a/1.jpg"]
    assert not caplog.records  # these are no links


def test_link_to_a_parent_of_the_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch("top/in/1.jpg", "top/in/s/2.jpg", "top/beside/3.jpg")
    link("top/in/up", "..")
    assert listed("top/in") == ["top/in/1.jpg", "top/in/s/2.jpg", "top/in/up/beside/3.jpg"]


def test_links_to_nothing_are_reported(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    touch("in/1.jpg")
    link("in/unmounted", "/no/such/folder")
    link("in/loop", "loop")
    link("in/2.jpg", "absent.jpg")  # listed, so reading it fails with a message
    assert listed("in") == ["in/1.jpg", "in/2.jpg"]
    assert "Skipped 2 links; the first is in/" in caplog.text
    assert "it is a link to nothing" in caplog.text


def test_brackets_in_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch("photos [2024]/x [1].jpg", "photos [2024]/x 1.jpg", "photos 2/y.jpg")
    inside = ["photos [2024]/x 1.jpg", "photos [2024]/x [1].jpg"]
    assert listed("photos [2024]") == listed("photos [2024]/*") == inside
    assert listed("photos [2024]/**/*.jpg") == listed("*4]/*") == inside
    assert listed("photos [2024]/x [1].jpg") == inside[1:]
    assert listed("photos [0-9]/*.jpg") == ["photos 2/y.jpg"]
    assert search_root("photos [2024]/*.jpg") == Path("photos [2024]")
    assert search_root("photos [0-9]/*.jpg") == Path()
    assert search_root(f"{tmp_path}/photos*/x.jpg") == tmp_path


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read any folder")
@pytest.mark.parametrize("given", ["in", "in/**", "in/*/*.jpg"])
def test_folder_that_cannot_be_searched(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    touch("in/1.jpg", "in/s/2.jpg")
    Path("in/s").chmod(0)
    with pytest.raises(ImageReadError, match="cannot search in/s"):
        listed(given)
