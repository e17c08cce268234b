"""The vocabulary study: the names of each question, and the figures."""

import json
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.experiments import growing_vocabulary
from dcp_clip.experiments import vocabulary_study as study
from dcp_clip.experiments.growing_vocabulary import GrowingVocabulary, StudyError, forms
from dcp_clip.experiments.vocabulary_questions import StudyImages, make_rows
from dcp_clip.structures import SemSegProposals
from dcp_clip.vocabulary import Vocabulary

WORDS = ["the", "Trees", "of", "cats", "word2", "it's", "auto", "zebra", "lamp", "music", "wordy"]
OWN = Vocabulary([["sky"], ["tree"], ["car", "auto"], ["road"], ["wall"], ["cat"]])
RELATED = Vocabulary([["lamp"], ["kitty", "cat"], ["cars"]])


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr(growing_vocabulary, "_common_words", lambda: WORDS)


@pytest.fixture
def dataset(tmp_path):
    """Two images, red above blue, labelled tree above car; the name of the data set."""
    name = "test_vocabulary_study"
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    image, labels = np.zeros((60, 80, 3), np.uint8), np.ones((60, 80), np.uint8)
    image[:30], image[30:], labels[30:] = (220, 30, 30), (30, 30, 220), 2
    for i in range(2):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{i}.png")
    names = list(OWN.display_names)
    register_sem_seg(name, tmp_path / "images", tmp_path / "labels", names, expected_count=2)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


def test_vocabularies_are_nested_and_begin_with_the_names_of_the_data_set(words):
    source = GrowingVocabulary(OWN, RELATED)
    sizes = [6, 7, 8, 9, 12]
    vocabularies = [source.first(size) for size in sizes]
    assert [len(v) for v in vocabularies] == sizes
    assert vocabularies[0].synonyms == OWN.synonyms
    largest = vocabularies[-1].synonyms
    assert all(largest[: len(v)] == v.synonyms for v in vocabularies)
    # "kitty, cat" has a name of the data set, "of" is too short, "Trees" is a plural.
    assert largest[6:] == (("lamp",), ("cars",), ("the",), ("zebra",), ("music",), ("wordy",))
    assert source.num_listed == 8
    with pytest.raises(StudyError, match=r"--sizes 13: there are only 12 different names"):
        source.first(13)


def test_forms_of_a_name():
    assert {"berry", "berries"} <= forms("Berry") & forms("berries")
    assert {"box", "boxes"} <= forms("box") & forms("boxes")
    assert "music" not in forms("mus")


def test_small_vocabularies_do_not_need_wordfreq(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    assert len(GrowingVocabulary(OWN, RELATED).first(8)) == 8
    with pytest.raises(StudyError, match=r"wordfreq.*pip install -e '\.\[emoji\]'"):
        GrowingVocabulary(OWN, RELATED).first(9)


def test_wordfreq_has_twenty_thousand_names():
    pytest.importorskip("wordfreq")
    names = GrowingVocabulary(OWN, RELATED).first(20_000).synonyms
    assert len(set(names)) == 20_000
    assert not {"sky", "skies", "trees", "it's"} & {name for (name, *_) in names[8:]}


class Painter(torch.nn.Module):
    """A model that labels red and blue pixels with the first known name of each list."""

    device = torch.device("cpu")

    def __init__(self, red=("tree", "background"), blue=("car", "background")) -> None:
        super().__init__()
        self.text_encoder = torch.nn.Module()
        self.text_encoder.encode_vocabulary = lambda vocabulary: len(vocabulary)
        self.red, self.blue, self.asked = red, blue, []

    def forward(self, batched_inputs):
        (x,) = batched_inputs
        names = [names[0] for names in x["vocabulary"].synonyms]
        self.asked.append(x["vocabulary"])
        red, blue = (
            next((names.index(n) for n in wanted if n in names), 0)
            for wanted in (self.red, self.blue)
        )
        labels = torch.where(x["image"][0] > x["image"][2], red, blue)
        logits = torch.nn.functional.one_hot(labels, len(names)).permute(2, 0, 1).float()
        ids = torch.arange(len(names))
        return [{"sem_seg": SemSegProposals(logits, ids, len(ids)), "proposals": {"ids": ids}}]


@pytest.fixture
def measure(dataset, make_cfg, words):
    """``measure(model, sizes, special)``: the figures of all rows."""
    MetadataCatalog.get(dataset).set(is_thing=[False, False, True, False, False, True])
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 0, "DATALOADER.NUM_WORKERS": 0})

    def run(model, sizes=(), special=False):
        images = StudyImages(dataset, limit=5)
        rows = make_rows(images, GrowingVocabulary(images.own, RELATED), sizes, special)
        return study.measure(cfg, model, images, rows)

    return run


def test_perfect_predictions_have_100_percent_at_every_size(measure):
    model = Painter()
    rows = measure(model, [3, 6, 8, 12])
    assert [row["names"] for row in rows] == [3, 6, 8, 12]
    for row in rows:
        scores = [row[k] for k in ("mIoU", "mIoU_things", "mIoU_stuff", "recall", "recall_things")]
        assert scores == pytest.approx([100] * 5) and row["milliseconds"] > 0
    few = [v for v in model.asked if len(v) == 3]
    assert all({"tree", "car"} < set(v.display_names) < set(OWN.display_names) for v in few)
    titles = [row["vocabulary"] for row in rows]
    assert titles[2:] == [
        "the data set's names + 2 related",
        "the data set's names + 2 related + 4 words",
    ]
    assert [row["per_image"] for row in rows] == [True, False, False, False]


def test_distractors_are_wrong_and_no_category_of_the_mean(measure):
    small, large = measure(Painter(red=("zebra", "tree")), [6, 12])
    assert small["mIoU"] == pytest.approx(100)
    # The tree is wrong, the car is correct.
    assert (large["mIoU_stuff"], large["mIoU_things"]) == pytest.approx((0, 100))
    assert large["mIoU"] == pytest.approx(50) and large["recall"] == pytest.approx(100)


def test_special_rows(measure):
    one, with_background, things = measure(Painter(), special=True)
    assert [row["names"] for row in (one, with_background, things)] == [1, 2, 3]
    assert one["mIoU_things"] == pytest.approx(50)  # the car is half of the image
    assert with_background["mIoU"] == with_background["mIoU_stuff"] == pytest.approx(100)
    assert things["mIoU_things"] == things["mIoU_stuff"] == pytest.approx(100)
    wrong = measure(Painter(red=("cat",)), special=True)[2]
    assert (wrong["mIoU_things"], wrong["mIoU_stuff"]) == pytest.approx((100, 0))


def test_sizes_below_the_number_of_names_in_an_image_are_refused(measure):
    with pytest.raises(StudyError, match=r"--sizes 1: .* 2 names; give 2 or more"):
        measure(Painter(), [1])


def test_max_images_is_an_error():
    """The rows of the study have their own images."""
    with pytest.raises(StudyError, match="set it to 0 and use --images"):
        study.run_study("", ["TEST.MAX_IMAGES", "3"], "camvid_sem_seg_val", [2])


def test_pixels_without_a_label_are_ignored(dataset, make_cfg, words):
    path = DatasetCatalog.get(dataset)[0]["sem_seg_file_name"]
    labels = np.array(Image.open(path))
    labels[:30] = 255
    Image.fromarray(labels).save(path)
    images = StudyImages(dataset, limit=1)
    assert [present.tolist() for present in images.present] == [[2]]
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 0, "DATALOADER.NUM_WORKERS": 0})
    rows = make_rows(images, GrowingVocabulary(images.own), [6], special=True)
    own, one, _ = study.measure(cfg, Painter(), images, rows)
    assert own["mIoU"] == one["mIoU"] == pytest.approx(100)
    assert own["mIoU_things"] is None  # the data set has no is_thing


def test_the_default_config_is_found_from_every_folder(load_program, tmp_path, monkeypatch, capsys):
    program = load_program("tools/vocabulary_study.py")
    monkeypatch.chdir(tmp_path)
    assert program.main(["TEST.MAX_IMAGES", "3"]) == 1
    assert "set it to 0 and use --images" in capsys.readouterr().err


def test_program(dataset, make_cfg, tmp_path, capsys, words, monkeypatch, load_program):
    program = load_program("tools/vocabulary_study.py")
    opts = {"DATASETS.TRAIN": (dataset,), "INPUT.MIN_SIZE_TEST": 48, "DATALOADER.NUM_WORKERS": 0}
    cfg = make_cfg("test-vit-16", opts)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    config, out, plot = (tmp_path / name for name in ("config.yaml", "out.json", "plot.png"))
    config.write_text(cfg.dump())
    arguments = ["--config-file", str(config), "--dataset", dataset, "--sizes", "9,6,2"]
    arguments += ["--related", "", "--special"]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    assert program.main([*arguments, "--json", str(out), "--plot", str(plot), *weights]) == 0
    report, content = capsys.readouterr().out, json.loads(out.read_text())
    assert [row["names"] for row in content["rows"]] == [2, 6, 9, 1, 2]
    assert [row["proposals"] for row in content["rows"]] == [2, 4, 4, 1, 2]  # K is 4
    lines = [line.replace("  ", "") for line in report.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5 and any("the data set's names + 3 words" in line for line in lines)
    assert content["environment"]["weights fingerprint"] in report
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    for bad, message in (
        (["--dataset", "no_such", *weights], "no_such"),
        ([*weights[:1], str(tmp_path / "absent.pth")], "absent.pth"),
        ([], "names no weights"),
        ([*weights, "MODEL.DCP_CLIP.PROPOSAL.NAME", "OracleProposal"], "OracleProposal"),
    ):
        assert program.main([*arguments, *bad]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error
    with pytest.raises(SystemExit, match="no/such"):
        program.main([*arguments, "--json", "no/such/out.json", *weights])
    # The shipped weights of a config are the default.
    monkeypatch.setattr(study, "shipped_weights", lambda *_: tmp_path / "model.pth")
    assert program.main(arguments) == 0
    assert content["environment"]["weights fingerprint"] in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--images", "0"], ["--sizes", "9,0"]])
def test_wrong_arguments(load_program, capsys, arguments):
    with pytest.raises(SystemExit):
        load_program("tools/vocabulary_study.py").main(arguments)
    assert f"{arguments[0]}: invalid " in capsys.readouterr().err


def test_flags_of_things_can_be_numbers(dataset, measure):
    expected = measure(Painter(red=("car",)), [6])
    MetadataCatalog.get(dataset).is_thing[:] = [0, 0, 1, 0, 0, 1]
    (row,), (other,) = expected, measure(Painter(red=("car",)), [6])
    names = ("mIoU", "mIoU_things", "mIoU_stuff", "recall_things")
    assert [other[name] for name in names] == pytest.approx([row[name] for name in names])


def test_an_image_without_labels_is_left_out(dataset, measure, tmp_path):
    expected = measure(Painter(), [6], special=True)
    void = np.full((60, 80), 255, np.uint8)
    Image.fromarray(void).save(tmp_path / "labels" / "1.png")
    for row, other in zip(expected, measure(Painter(), [6], special=True), strict=True):
        assert other["mIoU"] == pytest.approx(row["mIoU"])
    Image.fromarray(void).save(tmp_path / "labels" / "0.png")
    with pytest.raises(StudyError, match=f"No image of {dataset} has a labelled pixel"):
        StudyImages(dataset, limit=5)
