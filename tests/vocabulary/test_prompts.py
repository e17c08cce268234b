"""Sets of prompt templates, and prompts."""

import pytest

from dcp_clip.vocabulary.categories import VocabularyError
from dcp_clip.vocabulary.prompts import build_prompts, load_templates


def test_template_sets():
    assert load_templates("single") == ("a photo of a {}.",)
    for name, count in (("imagenet80", 80), ("maskclip85", 85), ("vild14", 14)):
        templates = load_templates(name)
        assert len(set(templates)) == len(templates) == count
        assert "a photo of a {}." in templates


def test_imagenet_templates_are_those_of_clip():
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    expected = [template("{}") for template in metadata.OPENAI_IMAGENET_TEMPLATES]
    assert list(load_templates("imagenet80")) == expected


def test_template_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# comment\na {}\n\n{} here\n")
    assert load_templates(str(path)) == ("a {}", "{} here")
    for content, message in (
        ("a {}\nno place\n", "line 2"),
        ("{} and {}", "line 1"),
        ("a {0}", "line 1"),
        ("\n", "no template"),
    ):
        path.write_text(content)
        with pytest.raises(VocabularyError, match=message) as error:
            load_templates(path)
        assert str(path) in str(error.value)
    with pytest.raises(VocabularyError, match="nosuchset.*imagenet80"):
        load_templates("nosuchset")


def test_prompts_are_grouped_by_name():
    prompts = build_prompts(["cat", "{}"], ["a {}.", "the {}"])
    assert prompts == ["a cat.", "the cat", "a {}.", "the {}"]
