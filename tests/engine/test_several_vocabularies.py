"""Training on data sets with different categories, on miniatures in the official formats."""

import functools
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.modeling import build_model
from helpers.benchmarks import make_ade20k_847, make_coco_stuff

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.data.dataset_mapper import SemSegDatasetMapper
from dcp_clip.data.train_loader import ResumableLoader, build_train_loader
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine.checkpoints.training_folder import training_record
from dcp_clip.vocabulary import Vocabulary

# Label maps of 8 bits, and of 16 bits, in which 255 is a category.
COCO, ADE = "mini_coco_sem_seg_train", "mini_ade_sem_seg_train"
COCO_VAL = "mini_coco_sem_seg_val"
FACTORS = "DATASETS.TRAIN_REPEAT_FACTOR"
OPTIONS = {
    "DATASETS.TRAIN": (COCO, ADE),
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (32, 40),
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": (32, 32),
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "MODEL.CLIP.TRAIN_IMAGE": "all",
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """COCO-Stuff and ADE20K-847 with three images each; the labels by data set and stem."""
    root, labels = tmp_path_factory.mktemp("several"), {}
    cases = make_coco_stuff(root / "in"), make_ade20k_847(root / "in")
    for case, names in zip(cases, ((COCO, COCO_VAL), (ADE,))):
        case.run(root)
        benchmark = BENCHMARKS[case.name]
        form = {"ignore_label": benchmark.ignore_label, "label_ext": benchmark.label_ext}
        for name, split in zip(names, ("train", "val")):
            folders = [root / case.name / kind / split for kind in ("images", "labels")]
            vocabulary = benchmark.vocabulary()
            if split == "val":  # other colours are not other categories
                colors = vocabulary.colors[::-1]
                vocabulary = Vocabulary(vocabulary.synonyms, colors=colors)
            register_sem_seg(name, *folders, vocabulary, **form)
            labels[name] = case.expected[case.name]
    yield labels
    for name in labels:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


@pytest.fixture
def make_config(make_cfg, datasets, tmp_path):
    cache = {"MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": str(tmp_path / "text")}

    def make(folder="out", **opts):
        cfg = make_cfg("test-convnext", {**OPTIONS, **cache, **opts})
        cfg.SEED, cfg.OUTPUT_DIR = 3, str(tmp_path / folder)
        (tmp_path / folder).mkdir(exist_ok=True)
        return cfg

    return make


def batches(loader, count):
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def summary(batch):
    return [(x["file_name"], x["image"].sum().item(), x["sem_seg"].sum().item()) for x in batch]


@pytest.mark.parametrize("grouping", [True, False])
def test_a_batch_has_one_vocabulary_and_void_is_that_of_its_data_set(
    make_config, datasets, grouping
):
    no_crop = {"INPUT.CROP.ENABLED": False, "INPUT.MIN_SIZE_TRAIN": (9,)}
    cfg = make_config(**no_crop, **{"DATALOADER.ASPECT_RATIO_GROUPING": grouping})
    np.random.seed(0)
    seen = Counter()
    for batch in batches(build_train_loader(cfg), 9):
        (vocabulary,) = {record["vocabulary"] for record in batch}
        name = COCO if vocabulary == dataset_vocabulary(COCO) else ADE
        for record in batch:
            seen[name, record["image_id"]] += 1
            labels, expected = record["sem_seg"].numpy(), datasets[name][record["image_id"]]
            known = labels < len(vocabulary)
            assert 0 < known.mean() < 1  # the others are void
            assert set(labels[known]) <= set(expected[expected < len(vocabulary)])
            assert "dataset" not in record
    # About three epochs of the six images; some images wait for the next batch.
    assert len(seen) == 6 and min(seen.values()) >= 2


def test_repeat_factors_and_their_errors(make_config):
    sampler = {"DATALOADER.SAMPLER_TRAIN": "WeightedTrainingSampler"}
    np.random.seed(0)
    loader = build_train_loader(make_config(**sampler, **{FACTORS: [[ADE, 3]]}))
    count = Counter(len(batch[0]["vocabulary"]) for batch in batches(loader, 12))
    assert count == {847: 9, 171: 3}
    for factors, message in [
        ([[ADE, 0]], r"entry \['mini_ade.*positive number"),
        ([ADE], "entry 'mini_ade.*positive number"),
        ([["elsewhere", 2.0]], "names 'elsewhere', which is not in DATASETS.TRAIN"),
        ([[ADE, 2.0], [ADE, 5.0]], f"names '{ADE}' twice: remove one"),
    ]:
        with pytest.raises(ValueError, match=f"{FACTORS}.*{message}"):
            build_train_loader(make_config(**sampler, **{FACTORS: factors}))
    with pytest.raises(ValueError, match=f"{FACTORS}.*SAMPLER_TRAIN is 'TrainingSampler'"):
        build_train_loader(make_config(**{FACTORS: [[ADE, 2.0]]}))
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        build_train_loader(make_config(**{"DATASETS.TRAIN": ()}))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_new_loader_continues_with_the_same_batches(make_config, workers):
    """Also with images that wait for others of their vocabulary."""
    np.random.seed(3)
    expected = batches(build_train_loader(make_config()), 8)
    cfg = make_config(**{"DATALOADER.NUM_WORKERS": workers})
    np.random.seed(3)
    loader = build_train_loader(cfg)
    iterator, waited = iter(loader), False
    for i in range(1, 5):
        assert summary(next(iterator)) == summary(expected[i - 1])
        state = loader.state_dict()
        if state["waiting"] and not waited:
            waited, other = True, build_train_loader(cfg)
            other.load_state_dict(state)
            found = batches(other, 8 - i)
            assert list(map(summary, found)) == list(map(summary, expected[i:]))
            assert [x[0]["vocabulary"] for x in found] == [x[0]["vocabulary"] for x in expected[i:]]
    assert waited


def test_interrupted_training_equals_undisturbed_training(make_config, run, interruptible):
    train = functools.partial(run, cls=interruptible)
    expected = train(make_config("undisturbed"))
    cfg = make_config("interrupted")
    train(cfg, stop_at=3)  # the last checkpoint is after 2 iterations
    resumed = train(cfg, resume=True, seed=1001)
    assert resumed.start_iter == 2
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected.model.state_dict()[name]), name
    record = training_record(cfg)["categories"]
    assert len(record) == 171 + 847 and record[171:172] != record[:1]


def test_data_sets_with_the_same_vocabulary_train_as_before(make_config):
    """The batches are those of a loader that knows nothing of vocabularies."""
    cfg = make_config(**{"DATASETS.TRAIN": (COCO, COCO_VAL)})
    np.random.seed(3)
    found = batches(build_train_loader(cfg), 6)
    np.random.seed(3)
    before = build_detection_train_loader(cfg, mapper=SemSegDatasetMapper(cfg))
    expected = batches(ResumableLoader(before, cfg.SEED), 6)
    assert list(map(summary, found)) == list(map(summary, expected))
    assert all("vocabulary" not in record for batch in found for record in batch)
    assert len({record["file_name"] for batch in found for record in batch}) == 5
    assert len(training_record(cfg)["categories"]) == 171


def test_the_tokens_of_all_vocabularies_are_kept(make_config, monkeypatch):
    encoder = build_model(make_config(**{"MODEL.CLIP.TRAIN_TEXT": "all"})).train().text_encoder
    calls, tokenize = [], encoder._tokenize
    monkeypatch.setattr(encoder, "_tokenize", lambda names: calls.append(1) or tokenize(names))
    for i in range(20):
        encoder.tokenize_vocabulary(Vocabulary([f"thing {i % 2}", "sky"]))
    assert len(calls) == 2
    for i in range(20):
        encoder.tokenize_vocabulary(Vocabulary([f"thing {i}", "sky"]))
    assert len(encoder._tokens) == 8


def test_heads_of_several_vocabularies(make_config):
    opts = {"MODEL.META_ARCHITECTURE": "FPNSegmentor"}
    with pytest.raises(ValueError, match=f"FPNSegmentor.*DATASETS.TRAIN.*{COCO}.*{ADE}"):
        build_model(make_config(**opts))
    build_model(make_config(**opts, **{"DATASETS.TRAIN": (COCO, COCO_VAL)}))
    opts = {"MODEL.META_ARCHITECTURE": "MaskQuerySegmentor"}
    seen = build_model(make_config(**opts))._seen_names
    for name in (COCO, ADE):
        assert set(dataset_vocabulary(name).synonyms[-1]) <= seen
