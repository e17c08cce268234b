"""Messages about the settings of two runs."""

import pytest

from dcp_clip.folder_run.settings import describe_difference


@pytest.mark.parametrize("before, now", [("/home/me", None), (None, "/home/me")])
def test_relative_and_absolute_paths_have_a_sentence(before, now):
    text = describe_difference({"working folder": before}, {"working folder": now})
    assert text == "one run has relative paths of images, and the other absolute paths"


def test_equal_settings_have_no_difference():
    assert describe_difference({"a": {"b": 1}}, {"a": {"b": 1}}) == ""
    assert describe_difference({"working folder": None}, {"working folder": None}) == ""
    assert describe_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "b was 1 and is 2"
    folders = describe_difference({"working folder": "/a"}, {"working folder": "/b"})
    assert folders == "working folder was /a and is /b"
