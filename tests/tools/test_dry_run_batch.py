"""dry_run.py: the images that it shows, and what it says where there are none."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.data.pairing import DatasetError
from dcp_clip.vocabulary import Vocabulary

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import dry_run

from dcp_clip.benchmarking import dry_run_batch as dry_run_batch

NAMES = ["sky", "tree", "car", "road", "wall", "cat"]
UNTRAINED = {
    "TEXT_GUIDANCE": "StaticGuidance",
    "COARSE_DECODER": "CosineDecoder",
    "FINE_DECODER": "BilinearDecoder",
    "CLASS_REFINEMENT": "NoRefinement",
}


def test_data_that_is_not_prepared(run, dataset, tmp_path):
    (tmp_path / "labels" / "1.png").unlink()
    text, output = run()
    assert f"Synthetic images stand in for '{dataset}', which is not prepared" in text
    assert "1.png" in text or "label" in text  # the data set's own sentence
    assert "400.0 epochs of 2" in text
    assert (output / "first_batch.png").is_file()


def test_nothing_trains(run, monkeypatch):
    """The images are those of the evaluation: in order, whole, and not flipped."""
    drawn = []

    def draw(batch, vocabulary):
        drawn.extend(batch)
        return draw_batch(batch, vocabulary)

    draw_batch = dry_run_batch.draw_batch
    monkeypatch.setattr(dry_run_batch, "draw_batch", draw)
    options = {f"MODEL.DCP_CLIP.{k}.NAME": v for k, v in UNTRAINED.items()}
    options |= {"MODEL.DCP_CLIP.PROPOSAL.LEARNED": False}
    options |= {"INPUT.MIN_SIZE_TEST": 0, "INPUT.CROP.ENABLED": True, "INPUT.CROP.SIZE": (16, 16)}
    text, output = run(**options)
    assert "Nothing trains with this config" in text and "TFLOPs" in text
    assert f"## First images\n\n{output / 'first_images.png'}: 60 x 80, 60 x 80." in text
    assert (output / "first_images.png").is_file()
    assert not {"first_batch.png", "schedule.png"} & {path.name for path in output.iterdir()}
    assert [Path(x["file_name"]).name for x in drawn] == ["0.png", "1.png"]
    assert (drawn[0]["sem_seg"][:30] == 1).all() and (drawn[0]["sem_seg"][30:] == 2).all()


def test_a_wrong_label_map_ends_with_a_sentence(run, tmp_path):
    for i in range(2):
        Image.fromarray(np.full((60, 80), 9, np.uint8)).save(tmp_path / "labels" / f"{i}.png")
    with pytest.raises(SystemExit, match=r"config.yaml: The label map .*\.png holds the label 9"):
        run()
    assert not (tmp_path / "out" / "report.md").exists()


def test_a_count_that_only_the_prepared_data_tell(run, dataset, tmp_path):
    """As EmojiScenes': nothing is known of it before it is prepared."""

    def count():
        raise DatasetError("not prepared")

    DatasetCatalog.remove(dataset)
    MetadataCatalog.pop(dataset)
    register_sem_seg(dataset, tmp_path / "none", tmp_path / "none", NAMES, expected_count=count)
    assert dry_run_batch.expected_count(dataset) is None
    text, _ = run()
    assert f"Synthetic images stand in for '{dataset}', which is not prepared" in text
    assert "epochs unknown" in text


@pytest.mark.parametrize(
    ("short", "longest", "size"),
    [(480, 4000, (480, 640)), (800, 1000, (750, 1000)), (0, 1000, (480, 640))],
)
def test_sizes_are_those_of_detectron2(make_cfg, short, longest, size):
    """The longest side limits both; no side asked for, no resizing."""
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": short, "INPUT.MAX_SIZE_TEST": longest})
    assert dry_run.test_size(cfg) == size
    if short:
        sides = {"INPUT.MIN_SIZE_TRAIN": (32, short), "INPUT.MAX_SIZE_TRAIN": longest}
        assert dry_run.train_size(make_cfg(opts=sides)) == size


def test_a_batch_of_uneven_images_is_drawn_whole():
    sizes = [(64, 64), (64, 200), (200, 64)]
    batch = [{"image": torch.zeros(3, *s).byte(), "sem_seg": torch.ones(s).long()} for s in sizes]
    picture = dry_run_batch.draw_batch(batch, Vocabulary(NAMES))
    assert picture.shape[0] > 400 and picture.shape[1] > 400
    coloured = (picture.max(2) != picture.min(2)).any(1)
    assert coloured[: len(coloured) // 2].any() and coloured[len(coloured) // 2 :].any()
