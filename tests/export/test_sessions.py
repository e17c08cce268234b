"""Damaged files of an exported folder are one clear error."""

import pytest

from dcp_clip.runtime import RuntimeFolderError
from dcp_clip.runtime.folder import ModelFolder
from dcp_clip.runtime.sessions import BACKENDS, open_program
from dcp_clip.runtime.text import TextEncoder


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_program(backend, tmp_path):
    pytest.importorskip(backend)
    path = tmp_path / "head.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(RuntimeFolderError, match="head.onnx' is damaged: copy or export it again"):
        open_program(path, backend)


def test_a_damaged_tokenizer(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(RuntimeFolderError, match="tokenizer.json' is damaged"):
        TextEncoder(ModelFolder(tmp_path, {}, None), None)


def test_names_of_data_sets_are_no_vocabulary():
    from dcp_clip.runtime.predictor import _parsed

    names = "camvid_sem_seg_val emoji_scenes_all_test voc_2012_test_background_sem_seg".split()
    for name in names:  # the last one is that of another project
        with pytest.raises(ValueError, match=f"'{name}' is the name of a data set"):
            _parsed(name)
    assert len(_parsed("sem_seg; car")) == 2
    assert len(_parsed("emoji scenes")) == 1
