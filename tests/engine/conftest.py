"""A small data set, a config, and a trainer with reproducible steps."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine import Trainer

NAME = "test_trainer_sem_seg"
BASE = {
    "DATASETS.TRAIN": (NAME,),
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (32,),
    "INPUT.MIN_SIZE_TEST": 32,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "SOLVER.EMA_DECAY": 0.9,
    "MODEL.CLIP.TRAIN_TEXT": "all",
    "MODEL.CLIP.TRAIN_IMAGE": "late",
}


@pytest.fixture
def dataset(tmp_path, write_stripes):
    """Three images of 40 x 48 pixels with three categories, registered as NAME."""
    write_stripes(tmp_path, 3)
    register_sem_seg(NAME, tmp_path / "images", tmp_path / "labels", ["sky", "tree", "car"])
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


@pytest.fixture
def config(make_cfg, dataset, tmp_path):
    def config(folder="out", **opts):
        # The ViT has no stochastic depth, so its steps are reproducible.
        cfg = make_cfg("test-vit-16", {**BASE, **opts})
        cfg.OUTPUT_DIR = str(tmp_path / folder)
        (tmp_path / folder).mkdir(exist_ok=True)
        return cfg

    return config


class Interruptible(Trainer):
    """A training that is interrupted at iteration `stop_at`."""

    stop_at = None

    def run_step(self):
        if self.iter == self.stop_at:
            raise KeyboardInterrupt
        super().run_step()


class Repeating(Interruptible):
    """Every iteration has the same batch."""

    @classmethod
    def build_train_loader(cls, cfg):
        generator = torch.Generator().manual_seed(5)
        vocabulary = dataset_vocabulary(cfg.DATASETS.TRAIN[0])
        batch = [
            {
                "image": torch.randint(0, 256, (3, 32, 48), generator=generator).byte(),
                "sem_seg": torch.randint(0, 3, (32, 48), generator=generator),
                "vocabulary": vocabulary,
            }
        ]

        class Forever:
            def __iter__(self):
                while True:
                    yield batch

        return Forever()


@pytest.fixture(scope="session")
def repeating():
    """The class of the trainer with the same batch in every iteration."""
    return Repeating


@pytest.fixture(scope="session")
def interruptible():
    """The class of the trainer with the batches of the data set."""
    return Interruptible


@pytest.fixture(scope="session")
def run():
    """``run(cfg, resume, stop_at)``: trains to the end, or until `stop_at`; returns the trainer.

    The global random numbers start from `seed`; another seed stands for a new process.
    """

    def run(cfg, resume=False, stop_at=None, cls=Repeating, seed=0):
        torch.manual_seed(seed)
        np.random.seed(seed)
        trainer = cls(cfg)
        trainer.stop_at = stop_at
        trainer.resume_or_load(resume)
        if stop_at is None:
            trainer.train()
        else:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        return trainer

    return run
