"""Model folders: what is written is read again, and a hostile folder is refused."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from huggingface_hub import ModelCard

from dcp_clip.engine.checkpoints.loading import WeightsError
from dcp_clip.evaluation.environment import weights_fingerprint
from dcp_clip.hub.folder import FILES, write_folder
from dcp_clip.predictor import Predictor
from dcp_clip.utils.tensor_files import read_tensors
from dcp_clip.vocabulary import VocabularyError


def results(model) -> dict:
    """What an evaluation writes."""
    scores = {"sem_seg": {"mIoU": 65.4884, "fwIoU": None}, "speed": {"images": 101}}
    environment = {
        "MODEL.WEIGHTS": "/home/me/model_final.pth",
        "weights fingerprint": weights_fingerprint(model),
    }
    names = ["streets_val", "roads_val"]
    return {"datasets": names, "results": {names[0]: scores}, "environment": environment}


def test_round_trip(predictor, saved, image, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    copy = Predictor.from_pretrained(saved)
    assert sorted(os.listdir(saved)) == sorted(FILES)
    assert copy.vocabulary == predictor.vocabulary and copy.vocabulary.negatives == (0,)
    assert weights_fingerprint(copy.model) == weights_fingerprint(predictor.model)
    assert copy.model.temperature == 1.5
    found, expected = copy(image), predictor(image)
    np.testing.assert_array_equal(found.label_map, expected.label_map)
    np.testing.assert_array_equal(found.confidence, expected.confidence)
    assert found.shares == expected.shares
    names = "cat; dog"  # the names of the folder are only the default
    other = Predictor.from_pretrained(
        str(saved), names, opts=["TEST.UNKNOWN_BELOW", "0.3"], max_input_pixels=50
    )
    assert len(other.vocabulary) == 2 and other.unknown_below == 0.3
    assert other.max_input_pixels == 50
    assert other(image).shares == predictor(image, vocabulary=names, unknown_below=0.3).shares


def test_the_home_folder(predictor, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    predictor.save_pretrained("~/model")
    assert Predictor.from_pretrained("~/model").vocabulary == predictor.vocabulary


def test_the_folder_names_nothing_of_this_machine(saved):
    for name in ("config.yaml", "README.md", "names.json", "model.calibration.json"):
        assert "/home/me" not in (saved / name).read_text(encoding="utf-8")
    assert yaml.safe_load((saved / "config.yaml").read_text())["MODEL"]["DEVICE"] == "cuda"


def test_half_precision_is_used_where_it_loses_nothing(predictor, tmp_path):
    state = predictor.model.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    try:
        for value in state.values():
            if value.is_floating_point():
                value.copy_(value.half().float())
        predictor.save_pretrained(tmp_path / "half")
        written = read_tensors(tmp_path / "half" / "model.safetensors")
        for name, value in state.items():
            assert torch.equal(written[name].to(value.dtype), value)
            matrix = value.dim() >= 2 and value.is_floating_point()
            assert written[name].dtype == (torch.float16 if matrix else value.dtype)
    finally:
        predictor.model.load_state_dict(before)


def test_a_folder_is_complete_or_absent(predictor, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match="full' cannot be written: it exists and is not an empty"):
        predictor.save_pretrained(tmp_path / "full")
    monkeypatch.setattr("dcp_clip.hub.folder.model_card", lambda *a: exec("raise OSError(28, 'x')"))
    with pytest.raises(OSError, match="new' cannot be written: x"):
        predictor.save_pretrained(tmp_path / "new")
    assert os.listdir(tmp_path) == ["full"] and os.listdir(tmp_path / "full") == ["notes.txt"]


def test_model_card(predictor, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results(predictor.model)))
    predictor.save_pretrained(tmp_path / "model", path)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    (score,) = card.data.eval_results
    assert (score.dataset_name, score.metric_type, score.metric_value) == (
        "streets_val",
        "mean_iou",
        65.49,
    )
    assert card.data.pipeline_tag == "image-segmentation"
    text = card.text
    assert 'from_pretrained("model")' in text and "Not evaluated (yet): roads_val" in text
    assert "| streets_val | – " in text and "| 65.49" in text and "my_streets_train" in text
    assert "temperature 1.5" in text and "model_final.pth" in text and "/home/me" not in text


@pytest.mark.parametrize("content", ["no json", "[]", "{}", '{"environment": {}}'])
def test_files_that_are_no_results(predictor, tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match="results.json' cannot be read as the results.json of an"):
        predictor.save_pretrained(tmp_path / "model", tmp_path / "results.json")
    assert not (tmp_path / "model").exists()


def test_results_of_other_weights(predictor, make_model, tmp_path):
    content = results(make_model(seed=1))
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is the evaluation of other weights"):
        predictor.save_pretrained(tmp_path / "model", tmp_path / "results.json")


def test_a_file_of_the_proxy_cannot_be_in_a_folder(predictor, tmp_path):
    cfg = predictor.cfg.clone()
    cfg.MODEL.CLIP.PROXY.PRETRAINED = "weights/dino.pth"
    with pytest.raises(ValueError, match="PROXY.PRETRAINED is the file 'weights/dino.pth'"):
        write_folder(tmp_path / "folder", cfg, predictor.model, predictor.vocabulary)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["FPNSegmentor", "MaskQuerySegmentor"])
def test_a_model_that_needs_the_names_of_its_training(make_cfg, tmp_path, kind):
    options = {"MODEL.META_ARCHITECTURE": kind, "DATASETS.TRAIN": ("camvid_sem_seg_train",)}
    cfg = make_cfg("dcp-tiny-cnn", options)
    model = build_model(cfg)
    with pytest.raises(ValueError, match=f"{kind} needs the categories of DATASETS.TRAIN"):
        write_folder(tmp_path / "folder", cfg, model, model.vocabulary)
    assert not list(tmp_path.iterdir())


def test_the_files_of_a_folder_can_be_named(predictor, saved, image, monkeypatch, tmp_path):
    """As on the command line; its templates are found from any current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "templates.txt").write_text("another {}\n")
    copy = Predictor.from_config_file(
        os.path.relpath(saved / "config.yaml"),
        weights=saved / "model.safetensors",
        vocabulary=saved / "names.json",
    )
    assert copy.model.text_encoder.templates == predictor.model.text_encoder.templates
    np.testing.assert_array_equal(copy(image).label_map, predictor(image).label_map)


def test_other_pixels_than_those_of_the_name(predictor, tmp_path, monkeypatch):
    stats = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    monkeypatch.setattr("dcp_clip.hub.folder.pixel_stats", lambda name, path: stats)
    with pytest.raises(ValueError, match="has another mean of the pixels than MODEL.CLIP.NAME"):
        predictor.save_pretrained(tmp_path / "model")


# ---- hostile folders


class Touch:
    """Unpickling creates a file."""

    def __reduce__(self):
        return os.system, ('touch "$HOSTILE_MARKER"',)


def change_config(folder, key, value):
    content = yaml.safe_load((folder / "config.yaml").read_text())
    node = content
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def add_line(folder, line):
    (folder / "config.yaml").write_text(f"{line}\n{(folder / 'config.yaml').read_text()}")


def pickle_instead(folder, name="model.safetensors"):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Touch()))


def link(folder, name):
    target = folder.parent / "secret"
    (folder / name).replace(target)
    (folder / name).symlink_to(target)


def cut_config(folder, key):
    """Remove everything from a key on."""
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text[: text.index(f"\n{key}:") + 1])


def truncate(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


HOSTILE = {
    "config": (lambda f: (f / "config.yaml").unlink(), "contains no config.yaml: give the folder"),
    "weights": (lambda f: (f / "model.safetensors").unlink(), "contains no model.safetensors"),
    "names": (lambda f: (f / "names.json").unlink(), "contains no names.json"),
    "templates": (lambda f: (f / "templates.txt").unlink(), "There are no prompt templates"),
    "pickle": (pickle_instead, "model.safetensors"),
    "pth": (lambda f: pickle_instead(f, "model.pth"), "'model.pth' is not read, write the folder"),
    "tag": (lambda f: add_line(f, "X: !!python/object/apply:os.system [ls]"), "is not allowed"),
    "base": (lambda f: add_line(f, "_BASE_: /etc/passwd"), "_BASE_ names files outside"),
    "import": (lambda f: change_config(f, "MODEL.IMPORTS", ["json"]), "MODEL.IMPORTS names json"),
    "key": (lambda f: change_config(f, "MODEL.HOSTILE", 1), "HOSTILE"),
    "clip": (
        lambda f: change_config(f, "MODEL.CLIP.NAME", "local-dir:/tmp"),
        "MODEL.CLIP.NAME names files outside",
    ),
    "other config": (
        lambda f: change_config(f, "MODEL.DCP_CLIP.DIM", 48),
        "model.safetensors",
    ),
    "other calibration": (
        lambda f: (f / "model.calibration.json").write_text(
            '{"temperature": 2, "weights fingerprint": "x"}'
        ),
        "belongs to other weights",
    ),
    "truncated weights": (lambda f: truncate(f, "model.safetensors"), "model.safetensors"),
    **{
        f"config without {key}": (
            lambda f, key=key: cut_config(f, key),
            "config.yaml' is not complete, because it has no",
        )
        for key in ("MODEL", "SOLVER", "VERSION")
    },
    "templates without a suffix": (
        lambda f: change_config(f, "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES", "mytemplates"),
        "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES names files outside of the folder",
    ),
    "truncated names": (lambda f: truncate(f, "names.json"), "names.json is not valid JSON"),
    **{
        f"link {name}": (lambda f, name=name: link(f, name), f"{name}' is a link to a file outside")
        for name in ("config.yaml", "model.safetensors", "names.json", "templates.txt")
    },
    **{
        key: (
            lambda f, key=key, value=value: change_config(f, key, value),
            f"{key} names files outside of the folder",
        )
        for key, value in {
            "MODEL.WEIGHTS": "/tmp/model.pth",
            "MODEL.CLIP.PRETRAINED": "https://example.org/clip.bin",
            "MODEL.CLIP.PROXY.PRETRAINED": "../../dino.pth",
            "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "../../cache",
            "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES": "../templates.txt",
            "DATASETS.SEM_SEG_FOLDERS": [{"name": "x", "images": "/", "labels": "/"}],
            "OUTPUT_DIR": "/tmp/out",
        }.items()
    },
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_are_refused(folder, monkeypatch, case):
    marker = folder.parent / "marker"
    monkeypatch.setenv("HOSTILE_MARKER", str(marker))
    disturb, expected = HOSTILE[case]
    disturb(folder)
    errors = (OSError, KeyError, ValueError, WeightsError, VocabularyError)
    with pytest.raises(errors) as raised:
        Predictor.from_pretrained(folder)
    message = str(raised.value)
    assert expected in message and "\n" not in message
    assert not marker.exists()


def test_links_in_the_cache_of_the_hub(saved, tmp_path, image, predictor):
    """There, a snapshot consists of links to blobs."""
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    shutil.copytree(saved, repository / "blobs")
    for name in os.listdir(saved):
        (snapshot / name).symlink_to(os.path.join("..", "..", "blobs", name))
    assert Predictor.from_pretrained(snapshot)(image).shares == predictor(image).shares


def test_options_in_one_text_are_an_error(saved):
    with pytest.raises(ValueError, match="opts is 'SEED 1', but must be a list"):
        Predictor.from_pretrained(saved, opts="SEED 1")
