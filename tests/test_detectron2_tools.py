"""What Detectron2's own tools and classes do with the model, its output and the data sets."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.utils.analysis import FlopCountAnalysis, parameter_count_table
from detectron2.utils.visualizer import ColorMode, Visualizer
from fvcore.nn import flop_count_table
from PIL import Image

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.structures import SemSegLabels, SemSegProposals
from dcp_clip.vocabulary import Vocabulary

NAME = "test_detectron2_tools_sem_seg"
NAMES = Vocabulary(["sky", "tree", "car"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write_stripes):
    folder = tmp_path_factory.mktemp("data")
    write_stripes(folder, 2)
    register_sem_seg(NAME, folder / "images", folder / "labels", NAMES, ignore_label=255)
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(opts={"MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": ""})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_analyze_model(model, make_image):
    """tools/analyze_model.py --tasks flop parameter; the task activation needs plain tensors."""
    data = [{"image": make_image(64, 96), "height": 60, "width": 90}]
    with torch.no_grad():
        expected = model(data)[0]["sem_seg"].logits
    flops = FlopCountAnalysis(model, data)
    small = FlopCountAnalysis(model, [{"image": make_image(32, 48)}]).total()
    assert 2 * small < flops.total() == sum(flops.by_operator().values())
    modules = flops.by_module()
    assert modules["model.backbone.visual"] > 0 and modules["model.fine_decoder"] > 0
    assert "fine_decoder" in flop_count_table(flops)
    assert "text_encoder" in parameter_count_table(model)
    with torch.no_grad():  # tracing left nothing behind
        assert torch.equal(model(data)[0]["sem_seg"].logits, expected)


def test_default_predictor_and_visualizer(dataset, make_cfg, model, tmp_path):
    """As in Detectron2's demo/predictor.py."""
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    opts = {
        "MODEL.WEIGHTS": str(tmp_path / "model.pth"),
        "DATASETS.TRAIN": (dataset,),
        "DATASETS.TEST": (dataset,),
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "",
    }
    predictor = DefaultPredictor(make_cfg(opts=opts))
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    sem_seg = predictor(image)["sem_seg"]
    assert sem_seg.shape == (3, 40, 50)
    labels = sem_seg.argmax(dim=0).to("cpu")
    visualizer = Visualizer(image[:, :, ::-1], predictor.metadata, instance_mode=ColorMode.IMAGE)
    assert visualizer.draw_sem_seg(labels).get_image().shape == (40, 50, 3)


def test_visualize_data(dataset):
    """tools/visualize_data.py --source annotation."""
    metadata = MetadataCatalog.get(dataset)
    for record in DatasetCatalog.get(dataset):
        with Image.open(record["file_name"]) as image:
            visualizer = Visualizer(np.asarray(image), metadata=metadata)
        drawn = visualizer.draw_dataset_dict(record).get_image()
        assert drawn.shape == (40, 48, 3)


def test_segmentations_answer_like_tensors():
    sem_seg = SemSegProposals(torch.randn(2, 3, 4), torch.tensor([3, 0]), 5, (6, 8))
    dense = sem_seg.to_dense()
    assert sem_seg.shape == dense.shape and sem_seg.size(1) == 6 and sem_seg.dim() == dense.dim()
    assert torch.equal(sem_seg.softmax(0), dense.softmax(0)) and sem_seg.dtype == dense.dtype
    assert (sem_seg.softmax(dim=0)[1] == 0).all()
    for category in (0, 1, 3, -2, np.int64(3)):
        torch.testing.assert_close(sem_seg[category], dense[category])
    np.testing.assert_array_equal(sem_seg.numpy(), dense.numpy())
    np.testing.assert_array_equal(np.asarray(sem_seg), dense.numpy())
    assert sem_seg.cpu().argmax(-3).equal(dense.argmax(0)) and len(list(sem_seg)) == 5
    for index in (slice(2), (0, 1), True, [0]):
        with pytest.raises(TypeError, match=r"one category id.*to_dense\(\)"):
            sem_seg[index]
    with pytest.raises(IndexError, match="no category 5"):
        sem_seg[5]
    with pytest.raises(ValueError, match="only dim=0"):
        sem_seg.softmax(1)
    with pytest.raises(AttributeError, match=r"no 'topk'; call to_dense\(\) first"):
        sem_seg.topk(2)
    assert not hasattr(sem_seg, "anything_else")
    labels = SemSegLabels(sem_seg.label_map(), sem_seg.category_ids, 5)
    assert labels.shape == (5, 6, 8) and labels.cpu() is labels
    for use in (lambda: labels.softmax(0), lambda: labels.numpy(), lambda: labels.to_dense()):
        with pytest.raises(AttributeError, match="labels but no logits"):
            use()
    with pytest.raises(TypeError, match="cannot be indexed"):
        labels[0]
    with pytest.raises(ValueError, match="no confidence"):
        labels.confidence()
