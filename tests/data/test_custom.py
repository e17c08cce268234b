"""Users' own folders of photographs and label maps, from Python and from YAML."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.events import EventStorage
from PIL import Image

from dcp_clip.config import setup_cfg
from dcp_clip.data import custom, register_sem_seg_folder
from dcp_clip.data.vocabularies import parse_vocabulary
from dcp_clip.engine import Trainer
from dcp_clip.predictor import Predictor
from dcp_clip.vocabulary import VocabularyError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def forget():
    """Remove the data sets of a test after it."""
    yield
    for name in custom._registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    custom._registered.clear()


def write_data(folder: Path, *, num_categories=3, ignore=255, wide=False) -> tuple[Path, Path]:
    """Three photographs; label maps with columns of the last three categories, ignored above."""
    rng = np.random.default_rng(0)
    images, labels = folder / "photos", folder / "masks"
    images.mkdir(parents=True)
    labels.mkdir()
    for i in range(3):
        label = np.repeat(np.arange(num_categories - 3, num_categories), 16)[None].repeat(32, 0)
        label[:4] = ignore
        image = rng.integers(0, 256, (32, 48, 3), np.uint8)
        Image.fromarray(image).save(images / f"{i}.jpeg")
        label = label.astype(np.uint16 if wide else np.uint8)
        Image.fromarray(label).save(labels / f"{i}{'.tif' if wide else '.png'}")
    return images, labels


def entry(images, labels, /, **changes) -> dict:
    changes = {"name": "street", "names": ["sky", "tree", "car"], **changes}
    whole = {"images": str(images), "labels": str(labels), **changes}
    return {key: value for key, value in whole.items() if value is not None}


def write_config(folder: Path, *entries: dict) -> Path:
    path = folder / "config.yaml"  # JSON is YAML
    path.write_text(json.dumps({"VERSION": 2, "DATASETS": {"SEM_SEG_FOLDERS": entries}}))
    return path


def test_from_python(tmp_path):
    images, labels = write_data(tmp_path, ignore=200)
    register_sem_seg_folder("street", images, labels, "sky; tree; car, automobile", 200)
    metadata = MetadataCatalog.get("street")
    assert metadata.stuff_synonyms == [["sky"], ["tree"], ["car", "automobile"]]
    assert metadata.ignore_label == 200 and metadata.evaluator_type == "sem_seg"
    assert [r["file_name"] for r in DatasetCatalog.get("street")] == [
        str(images / f"{i}.jpeg") for i in range(3)
    ]


@pytest.mark.parametrize("kind", ["list", "synonyms", "string", "txt", "json"])
def test_ways_to_give_names_in_yaml(kind, tmp_path):
    (tmp_path / "names.txt").write_text("sky\ntree\ncar, automobile\n")
    (tmp_path / "names.json").write_text('["sky", "tree", ["car", "automobile"]]')
    names = {
        "list": ["sky", "tree", "car"],
        "synonyms": ["sky", "tree", ["car", "automobile"]],
        "string": "sky; tree; car, automobile",
        "txt": str(tmp_path / "names.txt"),
        "json": str(tmp_path / "names.json"),
    }[kind]
    setup_cfg(write_config(tmp_path, entry(*write_data(tmp_path), names=names)))
    car = ["car"] if kind == "list" else ["car", "automobile"]
    assert MetadataCatalog.get("street").stuff_synonyms == [["sky"], ["tree"], car]
    assert parse_vocabulary("street").display_names == ("sky", "tree", "car")


def test_registering_again(tmp_path):
    """The last registration counts, for example in a notebook."""
    images, labels = write_data(tmp_path)
    path = write_config(tmp_path, entry(images, labels), entry(images, labels, name="street_2"))
    for _ in range(2):
        cfg = setup_cfg(path, ["DATASETS.TEST", "('street', 'street_2')"])
        assert len(DatasetCatalog.get("street")) == 3
    register_sem_seg_folder("street", images, labels, "sky; tree; bus")
    assert MetadataCatalog.get("street").stuff_classes == ["sky", "tree", "bus"]
    # A run writes its config to its output folder, which must register the same data sets.
    (tmp_path / "dump.yaml").write_text(cfg.dump())
    setup_cfg(tmp_path / "dump.yaml")
    assert MetadataCatalog.get("street").stuff_classes == ["sky", "tree", "car"]


def test_relative_paths_and_home(tmp_path, monkeypatch):
    write_data(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    register_sem_seg_folder("street", "photos", "~/masks", "sky; tree; car")
    assert len(DatasetCatalog.get("street")) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lables": "x"}, r"SEM_SEG_FOLDERS\[0\] has the unknown key 'lables'; known are name,"),
        ({"names": None}, r"SEM_SEG_FOLDERS\[0\] lacks the key 'names'"),
        ({"images": None}, r"SEM_SEG_FOLDERS\[0\] lacks the key 'images'"),
        ({"labels": ""}, r"SEM_SEG_FOLDERS\[0\] lacks the key 'labels'"),
        ({"labels": 3}, r"\[0\]: 'labels' of the data set 'street' must be a folder, got 3"),
        ({"images": "~data/x"}, r"'images' of .* is '~data/x', .*: write '~/' for your own"),
        ({"name": 3}, r"\[0\]: A data set needs a name, got 3"),
        ({"name": ["x"]}, r"\[0\]: A data set needs a name, got \['x'\]"),
        ({"names": "absent.txt"}, r"\[0\]: 'names' of the data set 'street'.*absent.txt does not"),
        ({"names": ["sky", False]}, r"Category 1 .* False"),
        ({"names": "road; !tree; car"}, r"\[0\]: .*'street' has the negative name '!tree'"),
        ({"names": ["road", "!tree"]}, r"\[0\]: .* remove the '!'"),
        ({"ignore": 2}, r"ignored label .* is 2, which is also the label of 'car'.* from 3 on"),
        ({"ignore": -1}, r"'ignore' .* whole number from 0 to 65535"),
        ({"ignore": "255"}, r"'ignore' .* is '255'"),
        ({"name": "ade20k_sem_seg_val"}, r"already has a data set 'ade20k_sem_seg_val'"),
        ({"name": "camvid_sem_seg_val"}, r"already has a data set 'camvid_sem_seg_val'"),
    ],
)
def test_errors_in_an_entry_are_named(changes, message, tmp_path):
    path = write_config(tmp_path, entry("photos", "masks", **changes))
    with pytest.raises(ValueError, match=message):
        setup_cfg(path)
    assert "street" not in DatasetCatalog


def test_errors_in_the_list_are_named(tmp_path):
    twice = write_config(tmp_path, entry("a", "b"), entry("a", "b"))
    with pytest.raises(ValueError, match=r"FOLDERS\[1\]: the name 'street' is given twice"):
        setup_cfg(twice)
    with pytest.raises(ValueError, match=r"FOLDERS\[0\] is 'photos': it must be a mapping"):
        setup_cfg("", ["DATASETS.SEM_SEG_FOLDERS", "['photos']"])


def test_unusable_names_are_a_vocabulary_error():
    with pytest.raises(VocabularyError, match="'names' of the data set 'street'"):
        register_sem_seg_folder("street", "a", "b", [])


def test_missing_folder_is_an_error_when_it_is_used(tmp_path):
    setup_cfg(write_config(tmp_path, entry(tmp_path / "photos", tmp_path / "masks")))
    with pytest.raises(RuntimeError, match=r"photos does not exist.*'street'.*custom_data.md"):
        DatasetCatalog.get("street")


@pytest.mark.parametrize("proposal", ["CategoryProposal", "OracleProposal"])
def test_a_step_and_an_evaluation_on_more_categories_than_eight_bits_hold(
    proposal, tmp_path, make_cfg
):
    """300 categories: 255 is one of them; the loss and the oracle ignore 65535."""
    images, labels = write_data(tmp_path, num_categories=300, ignore=65535, wide=True)
    names = [f"thing {i}" for i in range(300)]
    register_sem_seg_folder("street", images, labels, names, 65535)
    options = {
        "DATASETS.TRAIN": ("street",),
        "DATASETS.TEST": ("street",),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (32,),
        "INPUT.MIN_SIZE_TEST": 32,
        "INPUT.CROP.ENABLED": False,
        "MODEL.DCP_CLIP.PROPOSAL.NAME": proposal,
        "OUTPUT_DIR": str(tmp_path),
    }
    cfg = make_cfg(opts=options)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    batch = next(iter(Trainer.build_train_loader(cfg)))
    assert {x for r in batch for x in r["sem_seg"].unique().tolist()} == {297, 298, 299, 65535}
    with EventStorage():
        losses = model.train()(batch)
        sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    model.eval()
    results = inference_on_dataset(
        model, Trainer.build_test_loader(cfg, "street"), Trainer.build_evaluator(cfg, "street")
    )
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    if proposal == "OracleProposal":
        assert results["proposals"] == {"recall": 100, "per_image": 3}


def test_the_config_of_the_page_trains_evaluates_and_predicts(tmp_path, monkeypatch):
    """The files of docs/custom_data.md, with a single training step."""
    page = (ROOT / "docs" / "custom_data.md").read_text()
    yaml, several = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (names,) = re.findall(r"```\n(road\n.*?)```", page, flags=re.DOTALL)
    write_data(tmp_path / "mydata" / "train")
    write_data(tmp_path / "mydata" / "val")
    for split in ("train", "val"):
        (tmp_path / "mydata" / split / "photos").rename(tmp_path / "mydata" / split / "images")
        (tmp_path / "mydata" / split / "masks").rename(tmp_path / "mydata" / split / "labels")
    (tmp_path / "mydata" / "names.txt").write_text(names)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mydata.yaml").write_text(yaml.replace('"camvid/', '"configs/camvid/'))
    monkeypatch.chdir(tmp_path)
    small = "MODEL.DEVICE cpu SOLVER.MAX_ITER 1 TEST.EVAL_PERIOD 0 SOLVER.IMS_PER_BATCH 2"
    small += " INPUT.MIN_SIZE_TRAIN (32,) INPUT.MIN_SIZE_TEST 32 INPUT.CROP.SIZE (32,32)"
    cfg = setup_cfg("mydata.yaml", small.split())  # as each process of train_net.py does
    Path(cfg.OUTPUT_DIR).mkdir(parents=True)
    trainer = Trainer(cfg)
    trainer.train()
    results = Trainer.test(cfg, trainer.model)
    assert 0 <= results["sem_seg"]["mIoU"] <= 100 and "IoU-car" in results["sem_seg"]
    predictor = Predictor.from_config_file(
        "mydata.yaml", "output/mydata/model_final.pth", vocabulary="mydata_val"
    )
    found = predictor("mydata/val/images/0.jpeg").label_map
    assert found.shape == (32, 48) and found.max() < 3
    # The second config of the page adds a data set with other categories.
    (tmp_path / "several.yaml").write_text(f'_BASE_: "mydata.yaml"\n{several}')
    cfg = setup_cfg("several.yaml")
    assert cfg.DATASETS.TRAIN == ("mydata_train", "coco_stuff_sem_seg_train")
    assert set(dict(cfg.DATASETS.TRAIN_REPEAT_FACTOR)) <= set(cfg.DATASETS.TRAIN)


def test_the_conversions_of_the_page(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "custom_data.md").read_text()
    shift, colors, _ = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "mydata" / "train" / "raw" / "a.png"
    raw.parent.mkdir(parents=True)
    for code, image in (
        (shift, np.array([[0, 1, 3]], np.uint8)),
        (colors, np.array([[(9, 9, 9), (128, 64, 128), (0, 0, 142)]], np.uint8)),
    ):
        Image.fromarray(image).save(raw)
        exec(code, {})
        with Image.open(tmp_path / "mydata" / "train" / "labels" / "a.png") as labels:
            assert np.array(labels).tolist() == [[255, 0, 2]]
