"""The model on a GPU: the answers of the CPU, mixed precision, memory, and NCCL."""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.engine import Trainer
from dcp_clip.vocabulary import Vocabulary

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROOT = Path(__file__).parents[2]
CLIPS = ["test-convnext", "test-vit-14-quickgelu"]
NAME = "test_gpu_sem_seg"
NAMES = Vocabulary(["sky", "tree", ["car", "automobile"], "road", "wall", "cat", "dog", "sea"])
OPTIONS = {
    "DATASETS.TRAIN": (NAME,),
    "DATASETS.TEST": (NAME,),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (32,),
    "INPUT.MIN_SIZE_TEST": 32,
    "INPUT.CROP.ENABLED": False,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.EMA_DECAY": 0.9,
    "MODEL.CLIP.TRAIN_IMAGE": "late",
    "MODEL.CLIP.TRAIN_TEXT": "all",
}


@pytest.fixture(autouse=True)
def exact_products():
    """Without TF32, which rounds the inputs of products to 10 bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def dataset(tmp_path, write_stripes):
    write_stripes(tmp_path, 3)
    register_sem_seg(NAME, tmp_path / "images", tmp_path / "labels", ["sky", "tree", "car"])
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


@pytest.fixture
def config(make_cfg, dataset):
    def config(device, **options):
        options = {**OPTIONS, "MODEL.DEVICE": device, **options}
        cfg = make_cfg("test-vit-16", options)
        cfg.OUTPUT_DIR = str(dataset / device)
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        return cfg

    return config


@torch.no_grad()
def answers(model, images):
    inputs = [{"image": image, "vocabulary": NAMES} for image in images]
    outputs = model(inputs)
    return [(x["proposals"]["ids"].cpu(), x["sem_seg"].to("cpu")) for x in outputs]


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("clip", CLIPS)
def test_the_answers_are_those_of_the_cpu(make_model, make_image, clip, augmented):
    model = make_model(clip, {"TEST.AUG.ENABLED": augmented})
    images = [make_image(*size, seed=i) for i, size in enumerate([(64, 80), (64, 80), (33, 200)])]
    expected = answers(model, images)
    for (ids, sem_seg), (other_ids, other) in zip(
        answers(copy.deepcopy(model).to(DEVICE), images), expected, strict=True
    ):
        assert torch.equal(ids, other_ids)
        largest = other.maps.abs().max()
        torch.testing.assert_close(sem_seg.maps, other.maps, rtol=0, atol=1e-3 * largest.item())
        assert (sem_seg.label_map() == other.label_map()).mean() > 0.999


@pytest.mark.parametrize("clip", CLIPS)
def test_bf16_agrees_with_fp32(make_model, make_image, clip):
    model = make_model(clip).to(DEVICE)
    image = make_image(128, 160)
    ((_, exact),) = answers(model, [image])
    model.bf16 = True
    ((_, rounded),) = answers(model, [image])
    assert rounded.maps.isfinite().all()
    assert not torch.equal(rounded.maps, exact.maps)
    assert (rounded.label_map() == exact.label_map()).mean() > 0.9


def test_a_large_vocabulary_needs_little_memory(make_model, make_image):
    """20,000 names need memory for their text features and one chunk of similarities."""
    model, image = make_model().to(DEVICE), make_image(256, 256)
    peaks = []
    for count in (20, 20_000):
        vocabulary = Vocabulary([f"thing {i}" for i in range(count)])
        model.set_vocabulary(vocabulary)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            model([{"image": image, "vocabulary": vocabulary}])[0]["sem_seg"].label_map()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < peaks[0] + 16 * 2**20


@pytest.mark.parametrize("options", [{"SOLVER.AMP.ENABLED": True}, {"MODEL.DCP_CLIP.BF16": True}])
def test_training_in_mixed_precision(config, options):
    torch.manual_seed(0)
    trainer = Trainer(config(DEVICE, **options))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert all(value.dtype == before[name].dtype for name, value in after.items())


def test_the_evaluation_is_that_of_the_cpu(config, make_model):
    model = make_model("test-vit-16")
    expected = Trainer.test(config("cpu"), model)
    found = Trainer.test(config(DEVICE), copy.deepcopy(model).to(DEVICE))
    if NAME in expected:
        expected, found = expected[NAME], found[NAME]
    assert expected["sem_seg"]["mIoU"] == pytest.approx(found["sem_seg"]["mIoU"], abs=0.1)
    assert expected["proposals"] == pytest.approx(found["proposals"], abs=0.1)


PROGRAM = """
from dcp_clip.data.catalog import register_sem_seg
register_sem_seg("test_gpu_sem_seg", "images", "labels", ["sky", "tree", "car"])
"""


def test_one_process_of_nccl(dataset):
    """torchrun starts one process with NCCL. Detectron2 wraps the model for several only."""
    (dataset / "program.py").write_text(PROGRAM + (ROOT / "train_net.py").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {**OPTIONS, "MODEL.DEVICE": DEVICE, "OUTPUT_DIR": "nccl", "SEED": 7}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"]
    command += ["--master-port", str(port), "program.py", "--config-file"]
    command += [str(ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml")]
    command += [str(x) for pair in options.items() for x in pair]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=dataset, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    weights = torch.load(dataset / "nccl" / "model_final.pth", map_location="cpu")["model"]
    assert all(x.isfinite().all() for x in weights.values() if x.is_floating_point())
