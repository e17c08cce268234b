"""vocabulary_study.py: which names are asked for, and what an answer is worth."""

import json
import sys

import numpy as np
import pytest
import torch
import vocabulary_study
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from dcp_clip.experiments import study_names as study_names
from dcp_clip.experiments.study_names import NameSource, StudyError
from dcp_clip.experiments.study_questions import StudyImages, make_rows, registered
from dcp_clip.structures import SemSegProposals
from dcp_clip.vocabulary import Vocabulary

WORDS = ["the", "Trees", "of", "cats", "word2", "it's", "auto", "zebra", "lamp", "music", "wordy"]
OWN = Vocabulary([["sky"], ["tree"], ["car", "auto"], ["road"], ["wall"], ["cat"]])
RELATED = Vocabulary([["lamp"], ["kitty", "cat"], ["cars"]])


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr(study_names, "_common_words", lambda: WORDS)


def test_vocabularies_are_nested_and_begin_with_the_data_sets_names(words):
    source = NameSource(OWN, RELATED)
    sizes = [6, 7, 8, 9, 12]
    vocabularies = [source.vocabulary(size) for size in sizes]
    assert [len(v) for v in vocabularies] == sizes
    assert vocabularies[0].synonyms == OWN.synonyms
    largest = vocabularies[-1].synonyms
    assert all(largest[: len(v)] == v.synonyms for v in vocabularies)
    # "kitty, cat" has a name of the data set; "the" is a word, "of" too short, "Trees" a plural.
    assert largest[6:] == (("lamp",), ("cars",), ("the",), ("zebra",), ("music",), ("wordy",))
    assert source.num_listed == 8
    with pytest.raises(StudyError, match=r"--sizes 13: there are 12 different names"):
        source.vocabulary(13)


def test_forms_of_a_name():
    assert {"berry", "berries"} <= study_names.forms("Berry") & study_names.forms("berries")
    assert {"box", "boxes"} <= study_names.forms("box") & study_names.forms("boxes")
    assert "music" not in study_names.forms("mus")


def test_without_wordfreq_small_vocabularies_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    assert len(NameSource(OWN, RELATED).vocabulary(8)) == 8
    with pytest.raises(StudyError, match=r"wordfreq.*pip install -e '\.\[emoji\]'"):
        NameSource(OWN, RELATED).vocabulary(9)


def test_the_real_words_are_enough_for_twenty_thousand_names():
    pytest.importorskip("wordfreq")
    names = NameSource(OWN, RELATED).vocabulary(20_000).synonyms
    assert len(set(names)) == 20_000
    assert not {"sky", "skies", "trees", "it's"} & {name for (name, *_) in names[8:]}


class Painter(torch.nn.Module):
    """Red is a tree and blue is a car, or what else the vocabulary has for them."""

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
def measure(dataset, make_cfg, tmp_path, words):
    """``measure(model, sizes, special)`` on red trees above blue cars; rows by title."""
    MetadataCatalog.get(dataset).set(is_thing=[False, False, True, False, False, True])
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 0, "DATALOADER.NUM_WORKERS": 0})

    def run(model, sizes=(), special=False):
        images = StudyImages(dataset, limit=5)
        source = NameSource(images.own, RELATED)
        with registered(images, tmp_path / "study", special) as datasets:
            rows = make_rows(images, source, datasets, sizes)
            figures = vocabulary_study.measure(cfg, model, images, rows)
        assert not [name for name in DatasetCatalog.list() if "study" in name]
        return figures

    return run


def test_a_perfect_answer_is_perfect_at_every_size(measure):
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


def test_a_distractor_is_wrong_and_hides_nothing(measure):
    small, large = measure(Painter(red=("zebra", "tree")), [6, 12])
    assert small["mIoU"] == pytest.approx(100)
    # The tree is missed, the car is not; a distractor is no category that mIoU is over.
    assert (large["mIoU_stuff"], large["mIoU_things"]) == pytest.approx((0, 100))
    assert large["mIoU"] == pytest.approx(50) and large["recall"] == pytest.approx(100)


def test_special_questions(measure):
    one, before_background, things = measure(Painter(), special=True)
    assert [row["names"] for row in (one, before_background, things)] == [1, 2, 3]
    assert one["mIoU_things"] == pytest.approx(50)  # the car is half of the image
    assert before_background["mIoU"] == before_background["mIoU_stuff"] == pytest.approx(100)
    assert things["mIoU_things"] == things["mIoU_stuff"] == pytest.approx(100)
    wrong = measure(Painter(red=("cat",)), special=True)[2]
    assert (wrong["mIoU_things"], wrong["mIoU_stuff"]) == pytest.approx((100, 0))


def test_a_size_below_what_an_image_holds_is_refused(measure):
    with pytest.raises(StudyError, match=r"--sizes 1: .* 2 names; give 2 or more"):
        measure(Painter(), [1])


def test_pixels_without_a_label_stay_so(dataset, make_cfg, tmp_path, words):
    path = DatasetCatalog.get(dataset)[0]["sem_seg_file_name"]
    labels = np.array(Image.open(path))
    labels[:30] = 255
    Image.fromarray(labels).save(path)
    images = StudyImages(dataset, limit=1)
    assert [present.tolist() for present in images.present] == [[2]]
    with registered(images, tmp_path / "study", special=True) as datasets:
        cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 0, "DATALOADER.NUM_WORKERS": 0})
        rows = make_rows(images, NameSource(images.own), datasets, [6])
        own, one, _ = vocabulary_study.measure(cfg, Painter(), images, rows)
    assert own["mIoU"] == one["mIoU"] == pytest.approx(100)
    assert own["mIoU_things"] is None  # this data set does not tell


def test_from_the_command_line(dataset, make_cfg, tmp_path, capsys, words, monkeypatch):
    opts = {"DATASETS.TRAIN": (dataset,), "INPUT.MIN_SIZE_TEST": 48, "DATALOADER.NUM_WORKERS": 0}
    cfg = make_cfg("test-vit-16", opts)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    config, out, plot = (tmp_path / name for name in ("config.yaml", "out.json", "plot.png"))
    config.write_text(cfg.dump())
    arguments = ["--config-file", str(config), "--dataset", dataset, "--sizes", "9,6,2"]
    arguments += ["--related", "", "--special"]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    vocabulary_study.main([*arguments, "--json", str(out), "--plot", str(plot), *weights])
    report, content = capsys.readouterr().out, json.loads(out.read_text())
    assert [row["names"] for row in content["rows"]] == [2, 6, 9, 1, 2]
    assert [row["proposals"] for row in content["rows"]] == [2, 4, 4, 1, 2]  # K is 4
    assert report.count("\n| ") == 2 + 5 and "| 9 | the data set's names + 3 words |" in report
    assert content["environment"]["weights fingerprint"] in report
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    for bad, message in (
        (["--dataset", "no_such", *weights], "no_such"),
        ([*weights[:1], str(tmp_path / "absent.pth")], "absent.pth"),
        ([], "names no weights"),
        ([*weights, "MODEL.DCP_CLIP.PROPOSAL.NAME", "OracleProposal"], "OracleProposal"),
        (["--json", "no/such/out.json", *weights], "no/such"),
    ):
        with pytest.raises(SystemExit) as stop:
            vocabulary_study.main([*arguments, *bad])
        assert message in str(stop.value)
    # A config whose weights the repository has needs none named.
    monkeypatch.setattr(vocabulary_study, "shipped_weights", lambda *_: tmp_path / "model.pth")
    vocabulary_study.main(arguments)
    assert content["environment"]["weights fingerprint"] in capsys.readouterr().out
