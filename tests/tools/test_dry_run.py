"""dry_run.py: the report says what the config does; wrong arguments end with a sentence."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.benchmarking import dataset_preview, traced_step
from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.data.pairing import DatasetError

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml")
NAMES = ["sky", "tree", "car", "road", "wall", "cat"]
RED, BLUE = (220, 30, 30), (30, 30, 220)
NOTHING_TRAINS = {
    "MODEL.DCP_CLIP.TEXT_GUIDANCE.NAME": "StaticGuidance",
    "MODEL.DCP_CLIP.COARSE_DECODER.NAME": "CosineDecoder",
    "MODEL.DCP_CLIP.FINE_DECODER.NAME": "BilinearDecoder",
    "MODEL.DCP_CLIP.CLASS_REFINEMENT.NAME": "NoRefinement",
    "MODEL.DCP_CLIP.PROPOSAL.LEARNED": False,
}


@pytest.fixture
def dataset(tmp_path):
    """The name of a data set of two photographs, red (tree) above blue (car)."""
    name = "test_dry_run_sem_seg"
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    image, label = np.zeros((60, 80, 3), np.uint8), np.ones((60, 80), np.uint8)
    image[:30], image[30:], label[30:] = RED, BLUE, 2
    for i in range(2):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{i}.png")
    register_sem_seg(name, tmp_path / "images", tmp_path / "labels", NAMES, expected_count=2)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


@pytest.fixture
def run(load_program, make_cfg, dataset, tmp_path, capsys, monkeypatch):
    """``run(*arguments, KEY=value)`` on a small config; the report and the output folder."""
    program = load_program("tools/dry_run.py")

    def run(*arguments, trace=False, **opts):
        if not trace:  # which takes most of the time
            cost = traced_step.StepCost(2 * 10**12, 3 * 10**12, 2**21)
            monkeypatch.setattr(traced_step, "trace_step", lambda *args, **kwargs: cost)
        options = {
            "DATASETS.TRAIN": (dataset,),
            "INPUT.MIN_SIZE_TRAIN": (64,),
            "INPUT.COLOR_AUG_SSD": False,
            "SOLVER.REFERENCE_WORLD_SIZE": 4,
            "SOLVER.IMS_PER_BATCH": 8,
            "SOLVER.MAX_ITER": 100,
            "SOLVER.WARMUP_ITERS": 10,
            "SOLVER.BASE_LR": 0.01,
            **opts,
        }
        path, output = tmp_path / "config.yaml", tmp_path / "out"
        path.write_text(make_cfg("test-vit-16", options).dump())
        program.main(["--config-file", str(path), "--output", str(output), *arguments])
        text = capsys.readouterr().out
        assert (output / "report.md").read_text() == text
        return text, output

    return run


def test_configs_of_one_name_have_different_folders(load_program, monkeypatch, tmp_path):
    program = load_program("tools/dry_run.py")
    monkeypatch.setattr(program, "load_config", lambda args: None)
    monkeypatch.setattr(program, "report", lambda cfg, args: args.config_file)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folders = {"camvid": "camvid/tiny.yaml", "work": "tiny.yaml", tmp_path.name: "../tiny.yaml"}
    for folder, config in folders.items():
        program.main(["--config-file", config])
        assert Path("output/dry_run", folder, "tiny/report.md").read_text() == f"{config}\n"


def test_report(run):
    text, output = run(trace=True, **{"MODEL.CLIP.TRAIN_IMAGE": "late"})
    assert "4 GPUs x 2 = 8 images per iteration, 100 iterations, 800 images: 400.0 epochs" in text
    assert "| backbone" in text and "0.0001 |" in text  # a hundredth of BASE_LR
    assert "gradient buckets" in text and "GFLOPs forward" in text
    with Image.open(output / "schedule.png") as picture:
        assert picture.size > (400, 200)
    # Both halves of the images are visible, each in the colour of its category.
    picture = np.asarray(Image.open(output / "first_batch.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4


def test_data_sets_with_other_categories(run, dataset, write_stripes, tmp_path):
    """All images count, and the cost is that of the longest vocabulary."""
    (tmp_path / "other").mkdir()
    write_stripes(tmp_path / "other", 3)
    names, folders = [f"thing {i}" for i in range(9)], ("images", "labels")
    register_sem_seg(f"{dataset}_2", *(tmp_path / "other" / kind for kind in folders), names)
    try:
        data = {"DATASETS.TRAIN": (dataset, f"{dataset}_2")}
        text, _ = run(**data)
        factors = {"DATASETS.TRAIN_REPEAT_FACTOR": [[f"{dataset}_2", 6.0]]}
        sampler = {"DATALOADER.SAMPLER_TRAIN": "WeightedTrainingSampler"}
        repeated, _ = run(**data, **factors, **sampler)
    finally:
        DatasetCatalog.remove(f"{dataset}_2")
        MetadataCatalog.pop(f"{dataset}_2")
    assert "; 9 categories" in text and "160.0 epochs of 5" in text
    assert "40.0 epochs of 20" in repeated


def test_other_numbers_of_gpus_rescale(run):
    text, _ = run("--num-gpus", "2")
    assert "2 GPUs x 2 = 4 images per iteration, 200 iterations, 800 images" in text
    assert "0.005" in text
    text, _ = run("--num-gpus", "1")
    assert "1 GPU x 2 = 2 images" in text and "gradient buckets" not in text


def test_data_that_are_not_prepared(run, tmp_path):
    (tmp_path / "labels" / "1.png").unlink()
    text, output = run()
    assert "No picture: " in text and "1.png" in text  # the reason
    assert "400.0 epochs of 2" in text
    assert not (output / "first_batch.png").exists()


def test_without_a_training_set_the_epochs_are_unknown(run, dataset):
    text, _ = run(**{"DATASETS.TRAIN": ()})
    assert "800 images: epochs unknown" in text and "No picture: DATASETS.TRAIN is empty." in text
    text, _ = run(**{"DATASETS.TEST": ()})
    assert "\n0 evaluations, " in text
    text, _ = run(**{"DATASETS.TEST": (dataset,), "TEST.EVAL_PERIOD": -1})
    assert "\n1 evaluation, " in text


def test_nothing_trains(run, monkeypatch):
    """The images are those of the evaluation: in order, with its augmentation."""
    drawn = []
    monkeypatch.setattr(dataset_preview, "draw_images", lambda images, *_: drawn.extend(images))
    options = NOTHING_TRAINS | {"INPUT.MIN_SIZE_TEST": 30, "INPUT.CROP.ENABLED": True}
    text, output = run(**options)
    assert "This config has no trainable parameters" in text and "GFLOPs" in text
    assert f"## First images\n\n{output / 'first_images.png'}: 30 x 40, 30 x 40." in text
    assert "schedule.png" not in {path.name for path in output.iterdir()}
    assert [Path(x["file_name"]).name for x in drawn] == ["0.png", "1.png"]
    for x in drawn:
        red, _, blue = x["image"].long()
        top, bottom = slice(0, 14), slice(16, None)
        assert (red[top] > blue[top]).all() and (red[bottom] < blue[bottom]).all()


def test_a_very_narrow_test_image(make_cfg, dataset, tmp_path):
    """The evaluation keeps one pixel of it; Detectron2's own resizing fails."""
    file = tmp_path / "narrow.png"
    Image.new("RGB", (3000, 1)).save(file)
    label = tmp_path / "narrow_label.png"
    Image.new("L", (3000, 1)).save(label)
    records = [{"file_name": str(file), "sem_seg_file_name": str(label)}]
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 32, "INPUT.MAX_SIZE_TEST": 64})
    (image,) = dataset_preview.first_images(cfg, dataset, records, 1, train=False)
    assert image["image"].shape[-2:] == (1, 64)


def test_a_wrong_label_map_ends_with_a_sentence(run, tmp_path):
    for i in range(2):
        Image.fromarray(np.full((60, 80), 9, np.uint8)).save(tmp_path / "labels" / f"{i}.png")
    with pytest.raises(SystemExit, match=r"config.yaml: .*\.png.* 9"):
        run()
    assert not (tmp_path / "out" / "report.md").exists()


def test_a_count_that_only_prepared_data_tell(run, dataset, tmp_path):
    """As in EmojiScenes."""

    def count():
        raise DatasetError("not prepared")

    DatasetCatalog.remove(dataset)
    MetadataCatalog.pop(dataset)
    register_sem_seg(dataset, tmp_path / "none", tmp_path / "none", NAMES, expected_count=count)
    text, _ = run()
    assert "No picture: " in text and "epochs unknown" in text


@pytest.mark.parametrize(
    ("short", "longest", "size"),
    [(480, 4000, (480, 640)), (800, 1000, (750, 1000)), (0, 1000, (480, 640))],
)
def test_sizes_are_those_of_detectron2(load_program, make_cfg, short, longest, size):
    """The longest side limits both sides; 0 means no resizing."""
    program = load_program("tools/dry_run.py")
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": short, "INPUT.MAX_SIZE_TEST": longest})
    assert program.test_size(cfg) == size
    if short:
        sides = {"INPUT.MIN_SIZE_TRAIN": (32, short), "INPUT.MAX_SIZE_TRAIN": longest}
        assert program.train_size(make_cfg(opts=sides)) == size
        # A crop is clipped to the image.
        crop = {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute"}
        for side, expected in ((128, (128, 128)), (2000, size)):
            opts = sides | crop | {"INPUT.CROP.SIZE": (side, side)}
            assert program.train_size(make_cfg(opts=opts)) == expected
        for kind, expected in (("relative", (0.5, 0.25)), ("relative_range", (1.0, 1.0))):
            opts = sides | crop | {"INPUT.CROP.TYPE": kind, "INPUT.CROP.SIZE": (0.5, 0.25)}
            expected = tuple(int(a * b + 0.5) for a, b in zip(size, expected))
            assert program.train_size(make_cfg(opts=opts)) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "no/such.yaml"], "no/such.yaml"),
        (["--config-file", TINY, "--opts", "MODEL.CLIP.NAME", "ViT-Z"], "'ViT-Z'"),
        (["--config-file", ""], "'GeneralizedRCNN'"),
        (["--config-file", TINY, "--num-gpus", "0"], "must be positive"),
        (["--config-file", TINY, "--num-gpus", "3"], "8, which cannot be divided by 3 GPUs"),
        (
            [
                "--config-file",
                TINY,
                "--num-gpus",
                "2",
                "--opts",
                "SOLVER.REFERENCE_WORLD_SIZE",
                "3",
            ],
            "cannot be divided by SOLVER.REFERENCE_WORLD_SIZE, 3",
        ),
    ],
)
def test_wrong_arguments_end_with_a_sentence(load_program, arguments, message, tmp_path):
    with pytest.raises(SystemExit) as stop:
        load_program("tools/dry_run.py").main(["--output", str(tmp_path), *arguments])
    assert message in str(stop.value)
