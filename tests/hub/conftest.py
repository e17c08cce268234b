"""A small model, saved as a folder."""

import shutil
import socket

import numpy as np
import pytest

from dcp_clip.predictor import Predictor
from dcp_clip.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    [["!hand", "palm"], ["car", "automobile"], ["straße, 图"]],
    display_names=["hand", "Car", "road"],
    colors=[None, (1, 2, 3), None],
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that opens a connection fails."""

    def refuse(*args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def predictor(make_cfg, make_model, tmp_path_factory) -> Predictor:
    """A calibrated model with random weights, its own prompt templates and DATASETS of a user."""
    templates = tmp_path_factory.mktemp("templates") / "mine"  # a file needs no suffix
    templates.write_text("a photo of {}.\n# comment\nthe {}!\n")
    options = {
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES": str(templates),
        "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "",
    }
    cfg = make_cfg(opts=options)
    model = make_model(opts=options)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("my_streets_train",), ("my_streets_val",)
    cfg.DATASETS.SEM_SEG_FOLDERS = [{"name": "my_streets_train", "images": "/home/me/streets"}]
    cfg.MODEL.WEIGHTS = "/home/me/output/model_final.pth"
    cfg.OUTPUT_DIR = "/home/me/output"
    predictor = Predictor(cfg, VOCABULARY, model=model)
    predictor.model.temperature = 1.5
    return predictor


@pytest.fixture(scope="session")
def saved(predictor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "my_model"
    predictor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved folder, to be changed."""
    shutil.copytree(saved, tmp_path / "my_model")
    return tmp_path / "my_model"


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
