"""A training loader continues with another number of processes."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import build as detectron2_build
from detectron2.utils import comm
from PIL import Image

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.data.train_loader import build_train_loader, redistribute

NAME = "test_train_loader_sem_seg"
NUM_IMAGES = 60


@pytest.fixture
def dataset(tmp_path):
    """Portrait and landscape images, so that batches wait for similar aspect ratios."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for i in range(NUM_IMAGES):
            size = (32, 40) if i % 3 else (40, 32)
            Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / kind / f"{i:02}.png")
    register_sem_seg(NAME, tmp_path / "images", tmp_path / "labels", ["sky", "tree"])
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


@pytest.fixture
def take(make_cfg, dataset, monkeypatch):
    """``take(states, num_processes, batch, count, grouping)`` continues with new processes.

    Returns the names of the images of `count` batches in the order of their processes, and the new
    states.
    """

    def take(states, num_processes, batch, count, grouping):
        options = {
            "DATASETS.TRAIN": (NAME,),
            "DATALOADER.NUM_WORKERS": 0,
            "DATALOADER.ASPECT_RATIO_GROUPING": grouping,
            "INPUT.MIN_SIZE_TRAIN": (32,),
            "SOLVER.IMS_PER_BATCH": batch,
        }
        names, new_states = [], []
        monkeypatch.setattr(comm, "shared_random_seed", lambda: num_processes)  # another each time
        for module in (comm, detectron2_build):
            monkeypatch.setattr(module, "get_world_size", lambda: num_processes)
        for rank in range(num_processes):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            loader = build_train_loader(make_cfg("test-vit-16", options))
            if states:
                loader.load_state_dict(redistribute(states, rank, num_processes))
            for records in itertools.islice(loader, count):
                names += [Path(record["file_name"]).stem for record in records]
            new_states.append(loader.state_dict())
        return names, new_states

    return take


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("numbers", [(2, 1), (1, 2), (3, 2), (2, 6)], ids=str)
def test_every_image_of_the_epoch_is_used_once(take, numbers, grouping):
    first, states = take([], numbers[0], 12, 2, grouping)
    second, states = take(states, numbers[1], 6, 2, grouping)
    third, _ = take(states, 1, 1, NUM_IMAGES - len(first + second), grouping)
    assert (len(first), len(second)) == (24, 12)
    assert sorted(first + second + third) == [f"{i:02}" for i in range(NUM_IMAGES)]
