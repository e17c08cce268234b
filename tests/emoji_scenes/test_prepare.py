"""Writing, registering and reading the data set."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.emoji_scenes.prepare import Settings, prepare_emoji_scenes, scene_source
from dcp_clip.emoji_scenes.register import register_emoji_scenes
from dcp_clip.evaluation import MeanIoUEvaluator

SUBSETS = ("base_train", "all_test")


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for part in ("images", "labels", "scenes")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }


@pytest.fixture
def registered(settings):
    """Settings of a data set that is registered during the test."""
    register_emoji_scenes(settings.root)
    yield settings
    register_emoji_scenes()


def test_result_does_not_depend_on_processes_and_interruptions(settings, tmp_path):
    prepare_emoji_scenes(settings, SUBSETS, scenes=5, workers=1)
    before = contents(settings.folder)
    assert len(before) == 2 * (5 + 5 + 1)
    (settings.folder / "scenes/base_train.json").unlink()
    (settings.folder / "labels/base_train/000003.png").unlink()
    (settings.folder / f"images/base_train/.{'1' * 32}.part").write_bytes(b"unfinished")
    kept = settings.folder / "images/base_train/000001.png"
    stamp = kept.stat().st_mtime_ns
    prepare_emoji_scenes(settings, SUBSETS, scenes=5, workers=2)
    assert contents(settings.folder) == before and kept.stat().st_mtime_ns == stamp


def test_files_contain_the_scenes_of_the_source(settings):
    prepare_emoji_scenes(settings, SUBSETS, scenes=3)
    for name in SUBSETS:
        listed = json.loads((settings.folder / f"scenes/{name}.json").read_text())
        assert (listed["count"], len(listed["scenes"])) == (3, 3)
        for i, entry in enumerate(listed["scenes"]):
            scene = scene_source(settings, name)(i)
            image = np.array(Image.open(settings.folder / "images" / name / entry["file"]))
            labels = np.array(Image.open(settings.folder / "labels" / name / entry["file"]))
            assert (image == scene.image).all() and (labels == scene.labels).all()
            assert entry["things"] == scene.things and entry["stuff"] == scene.stuff
    assert "noto: made for a test" in (settings.folder / "LICENCES").read_text()


def test_scenes_can_be_added_but_not_removed(settings):
    prepare_emoji_scenes(settings, ["base_val"], scenes=2)
    before = contents(settings.folder)
    prepare_emoji_scenes(settings, ["base_val"], scenes=4)
    after = contents(settings.folder)
    assert len(after) == 9 and all(after[k] == v for k, v in before.items() if "json" not in k)
    with pytest.raises(DatasetError, match="has the file 000002.png, which is not one of the 2"):
        prepare_emoji_scenes(settings, ["base_val"], scenes=2)


def test_files_of_file_managers_are_ignored(settings):
    prepare_emoji_scenes(settings, ["base_val"], scenes=2)
    before = contents(settings.folder)
    for name in (".DS_Store", "Thumbs.db"):
        (settings.folder / "images" / "base_val" / name).touch()
    (settings.folder / "images" / "base_val" / "000001.png").unlink()
    prepare_emoji_scenes(settings, ["base_val"], scenes=2)
    after = contents(settings.folder)
    assert {name: after[name] for name in before} == before


def test_other_settings_are_refused(settings):
    prepare_emoji_scenes(settings, ["base_val"], scenes=1)
    with pytest.raises(DatasetError, match=r"was made with .*'seed': 0.*not .*'seed': 7"):
        prepare_emoji_scenes(Settings(settings.root, size=32, seed=7), ["base_val"], scenes=1)
    with pytest.raises(DatasetError, match="choose 32 to 1024"):
        prepare_emoji_scenes(Settings(settings.root, size=8), ["base_val"])


def test_a_folder_without_scenes_takes_other_settings(tmp_path):
    """For example, npm was missing and the user follows the advice to take another source."""
    Settings(tmp_path, source="npm").check()
    (tmp_path / "emoji_scenes" / "art").mkdir()
    Settings(tmp_path, source="pip", size=64).check()
    found = json.loads((tmp_path / "emoji_scenes" / "settings.json").read_text())
    assert (found["source"], found["size"]) == ("pip", 64)


def test_sprites_of_another_size_are_refused(settings):
    (settings.folder / "settings.json").unlink(missing_ok=True)
    with pytest.raises(DatasetError, match="sprites of 24 pixels, not 48: remove it"):
        prepare_emoji_scenes(Settings(settings.root, size=64), ["base_val"])


def test_subsets_in_the_unseen_style_are_skipped_without_it(tmp_path, sprite_folder, caplog):
    caplog.set_level("INFO")
    settings = Settings(tmp_path, source="pip", size=32)
    (settings.folder / "sprites").mkdir(parents=True)
    (settings.folder / "sprites/openmoji.npz").symlink_to(sprite_folder / "openmoji.npz")
    prepare_emoji_scenes(settings, ["unseen_test", "unseen_style_test"], scenes=2)
    assert [p.name for p in (settings.folder / "images").iterdir()] == ["unseen_test"]
    assert "unseen_style_test: the source 'pip' has no unseen style" in caplog.text


def test_selected_styles_are_not_the_benchmark(registered, caplog):
    caplog.set_level("INFO")
    chosen = replace(registered, only=("noto", "twemoji", "openmoji"))
    prepare_emoji_scenes(chosen, ["base_test", "all_test"], scenes=4)
    for subset, styles in (("base_test", {"twemoji", "openmoji"}), ("all_test", {"noto"})):
        listed = json.loads((chosen.folder / f"scenes/{subset}.json").read_text())["scenes"]
        assert {thing["style"] for scene in listed for thing in scene["things"]} == styles
    licences = (chosen.folder / "LICENCES").read_text()
    assert licences.count("made for a test") == 3 and "fxemoji" not in licences
    with pytest.raises(
        DatasetError, match=r"made with .*'styles': \['twemoji', 'openmoji', 'noto'"
    ):
        prepare_emoji_scenes(registered, ["base_test"], scenes=4)
    DatasetCatalog.get("emoji_scenes_base_test")
    assert "with size 32, styles ['twemoji', 'openmoji', 'noto'] and is not the" in caplog.text


def test_unknown_styles(settings, caplog):
    caplog.set_level("INFO")
    with pytest.raises(
        DatasetError, match="'npm' has no style 'nato': choose from twemoji, .*noto"
    ):
        prepare_emoji_scenes(replace(settings, only=("twemoji", "nato")), ["base_test"])
    assert not (settings.folder / "settings.json").exists()
    prepare_emoji_scenes(replace(settings, only=("twemoji",)), ["all_test"], scenes=1)
    assert "all_test: the source 'npm' with the styles twemoji has no unseen style" in caplog.text


def test_registered_metadata(registered, names):
    metadata = MetadataCatalog.get("emoji_scenes_all_test")
    assert metadata.is_thing == [True] * 587 + [False] * 24
    assert sum(metadata.is_base) == 150 + 16 and metadata.ignore_label == 65535
    metadata = MetadataCatalog.get("emoji_scenes_unseen_val")
    assert sum(metadata.is_thing) == 150 and sum(metadata.is_base) == 16
    vocabulary = dataset_vocabulary("emoji_scenes_split1_unseen_style_test")
    assert len(vocabulary) == 174 and vocabulary.display_names[-1] == "checkered tablecloth"
    dog = dataset_vocabulary("emoji_scenes_all_val").index("dog face")
    assert names.things[dog].name == "dog"
    train = MetadataCatalog.get("emoji_scenes_base_train")
    assert len(train.stuff_classes) == 166 and all(train.is_base)


def test_dataset_is_read_and_evaluated(registered, caplog):
    with pytest.raises(DatasetError, match=r"all_test.json, which a complete.*--root"):
        DatasetCatalog.get("emoji_scenes_all_test")
    prepare_emoji_scenes(registered, ["all_test"], scenes=3)
    records = DatasetCatalog.get("emoji_scenes_all_test")
    assert len(records) == 3 and "not the benchmark's 2000" in caplog.text
    # The evaluator reads the 16-bit labels: the correct labels have 100 percent.
    evaluator = MeanIoUEvaluator("emoji_scenes_all_test", distributed=False)
    evaluator.reset()
    labels = [np.array(Image.open(r["sem_seg_file_name"])) for r in records]
    assert max(label.max() for label in labels) > 255
    for record, label in zip(records, labels):
        onehot = torch.zeros(611, 32, 32).scatter_(0, torch.as_tensor(label.astype(int))[None], 1.0)
        evaluator.process([record], [{"sem_seg": onehot}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_damaged_list_of_scenes_is_named(registered, content):
    prepare_emoji_scenes(registered, ["base_val"], scenes=3)
    (registered.folder / "scenes/base_val.json").write_text(content)
    with pytest.raises(DatasetError, match="base_val.json, which a complete preparation"):
        DatasetCatalog.get("emoji_scenes_base_val")


def test_incomplete_data_set_is_refused(registered):
    prepare_emoji_scenes(registered, ["base_val"], scenes=3)
    for part in ("images", "labels"):
        (registered.folder / part / "base_val/000001.png").unlink()
    with pytest.raises(DatasetError, match="holds 2 images, not 3.*--root"):
        DatasetCatalog.get("emoji_scenes_base_val")
    with pytest.raises(DatasetError, match="--split 1"):
        DatasetCatalog.get("emoji_scenes_split1_base_val")
