"""The mark `!` of negative names in files."""

import pytest

from dcp_clip.vocabulary import Vocabulary, VocabularyError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- cup\n- !wine glass\n", "line 2: .*'!wine glass' in quotes"),
        ("- cup\n- ! wine glass  # of a bar\n", "line 2: .*'! wine glass' in quotes"),
        ("- cup\r\n- !hand\r\n", "line 2: .*'!hand' in quotes"),
        ("- cup\n- [!hand, palm]\n", "line 2: .*'!hand' in quotes"),
        ("- cup\n- ![hand, palm]\n", "line 2: .*'!' in quotes"),
        ('- cup\n- !"wine glass"\n', "line 2: .*'!\"wine glass\"' in quotes"),
        ("names: {0: cup, 1: !wine glass}", "line 1: .*'!wine glass' in quotes"),
        ("- name: cup\n- name: !wine glass\n", "line 2: .*'!wine glass' in quotes"),
        ("{cup: 0, !wine glass: 1}", "line 1: .*'!wine glass' in quotes"),
        ("cup: 0\n!hand: 1\n", "line 2: .*'!hand' in quotes"),
    ],
)
def test_a_mark_without_quotes_in_yaml_is_an_error(tmp_path, content, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(content.encode())
    with pytest.raises(VocabularyError, match=f"a.yaml, {message}"):
        Vocabulary.from_file(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", "- cup\n- '!wine glass'\n"),
        ("a.yaml", 'names: {0: cup, 1: "!wine glass"}'),
        ("a.yaml", "- name: cup\n- {name: '!wine glass', color: [1, 2, 3]}\n"),
        ("a.yaml", "{!!str cup: 0, '! wine glass': 1}"),
        ("a.json", '["cup", "!wine glass"]'),
        ("a.csv", "cup\n!wine glass\n"),
        ("a.txt", "0: cup\n1: !wine glass\n"),
    ],
)
def test_marks_of_negative_names(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    vocabulary = Vocabulary.from_file(tmp_path / name)
    assert vocabulary.synonyms == (("cup",), ("wine glass",)) and vocabulary.negatives == (1,)
