"""Shipped configs and weights are found by name, in a clone and in an installed package."""

from pathlib import Path

import pytest
import torch

from dcp_clip import model_zoo
from dcp_clip.config import setup_cfg
from dcp_clip.modeling.clip.cached_weights import is_cached
from dcp_clip.utils import shipped_files

ROOT = Path(__file__).parents[1]
CAMVID = "camvid/dcp_clip_tiny.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in a folder without configs, as a user of an installed package does."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("data", ["camvid", "emoji_scenes"])
def test_trained_models(data):
    name = f"{data}/dcp_clip_tiny.yaml"
    assert model_zoo.get_config_file(name) == str(ROOT / "configs" / name)
    weights = model_zoo.get_weights(name)
    assert weights == str(ROOT / "dcp_clip" / "weights" / f"{data}_tiny.pth")
    assert model_zoo.get_weights(model_zoo.get_config_file(name)) == weights
    assert model_zoo.get_config(name, trained=True).MODEL.WEIGHTS == weights
    assert model_zoo.get_config(name).MODEL.WEIGHTS == ""


def test_weights_are_loaded():
    model = model_zoo.get(CAMVID, trained=True, device="cpu")
    saved = torch.load(model_zoo.get_weights(CAMVID), weights_only=True)
    saved = saved.get("model", saved)
    name, value = next((k, v) for k, v in saved.items() if v.is_floating_point())
    torch.testing.assert_close(model.state_dict()[name], value.float())
    assert not model.training


@pytest.mark.parametrize("config", ["camvid/fpn_tiny.yaml", "training_free/vit_b16.yaml"])
def test_configs_without_trained_weights(config):
    assert Path(model_zoo.get_config_file(config)).is_file()
    with pytest.raises(ValueError, match=f"no trained weights.*{config}"):
        model_zoo.get_weights(config)
    with pytest.raises(ValueError, match="no trained weights"):
        model_zoo.get_config(config, trained=True)


def test_unknown_names():
    for function in (model_zoo.get_config_file, model_zoo.get_weights, setup_cfg):
        with pytest.raises(FileNotFoundError, match=r"config file 'absent\.yaml' does not exist"):
            function("absent.yaml")


def test_setup_cfg_reads_shipped_configs_by_name():
    assert setup_cfg(CAMVID) == setup_cfg(ROOT / "configs" / CAMVID)


def test_the_users_own_files_have_priority(tmp_path):
    own = tmp_path / CAMVID
    own.parent.mkdir()
    own.write_text("OUTPUT_DIR: 'mine'\n")
    assert setup_cfg(CAMVID).OUTPUT_DIR == "mine"
    assert shipped_files.find_weights(CAMVID) is None


def test_every_named_file_ships():
    for config, weights in shipped_files._WEIGHTS.items():
        assert (ROOT / "configs" / config).is_file()
        assert (ROOT / "dcp_clip" / "weights" / weights).is_file()


def test_available_configs_need_no_download(monkeypatch):
    shipped = [CAMVID, "emoji_scenes/dcp_clip_tiny.yaml"]
    monkeypatch.setattr(model_zoo, "is_cached", lambda name, tag: False)
    assert model_zoo.available() == shipped
    monkeypatch.setattr(model_zoo, "is_cached", lambda name, tag: tag == "openai")
    assert model_zoo.available()[:2] == shipped
    assert "training_free/vit_b16.yaml" in model_zoo.available()
    assert "training_free/convnext_b.yaml" not in model_zoo.available()


def test_cached_weights(monkeypatch, tmp_path):
    """Weights count as cached if the cache of Hugging Face has one of open_clip's files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    arguments = "ViT-B-16-quickgelu", "openai"
    assert not is_cached(*arguments) and not is_cached("ViT-B-16", "unknown")
    repository = tmp_path / "models--timm--vit_base_patch16_clip_224.openai"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    file = repository / "snapshots" / "abc" / "open_clip_model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    assert is_cached(*arguments)
