"""CLIP's weights: files of every format, and one clear sentence if loading fails."""

import logging
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch

from dcp_clip.modeling import CLIPBackbone, TextEncoder
from dcp_clip.modeling.clip.loading import CLIPWeightsError, create_clip, load_clip, share_clip

CLIP = "test-vit-16"


@pytest.fixture
def load(make_cfg):
    def load(pretrained, clip=CLIP):
        return load_clip(make_cfg(clip, {"MODEL.CLIP.PRETRAINED": str(pretrained)}))

    return load


@pytest.fixture(scope="module")
def source(make_cfg, randomize):
    torch.manual_seed(0)
    return randomize(load_clip(make_cfg(CLIP)))


def save(model, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return path


def assert_one_sentence(error) -> None:
    message = str(error.value)
    assert "\n" not in message and len(message) < 600, message


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_local_files(load, source, tmp_path, suffix):
    loaded = load(save(source, tmp_path / f"weights{suffix}")).state_dict()
    assert loaded.keys() == source.state_dict().keys()
    for key, value in source.state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_shipped_weights_are_found_from_any_folder(load, monkeypatch, tmp_path):
    """Their paths are relative to the folder that contains the package, installed or not."""
    monkeypatch.chdir(tmp_path)
    for name in ("clip_tiny_emoji", "clip_tiny_emoji_192", "clip_tiny_emoji_plain"):
        load(f"dcp_clip/weights/{name}.pth", clip="dcp-tiny-cnn-s16")


def test_a_file_in_the_working_folder_comes_first(load, source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "dcp_clip" / "weights" / "clip_tiny_emoji.pth"
    path.parent.mkdir(parents=True)
    save(source, path)
    loaded = load("dcp_clip/weights/clip_tiny_emoji.pth")
    assert torch.equal(loaded.visual.proj, source.visual.proj)


def test_training_checkpoints_of_open_clip(load, source, tmp_path):
    """The weights are under "state_dict", with the prefix of the distributed wrapper."""
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    loaded = load(tmp_path / "epoch_3.pt")
    assert torch.equal(loaded.visual.proj, source.visual.proj)


def test_weights_of_the_plain_clip_class(load, tmp_path):
    """Published checkpoints are of open_clip.CLIP, whose text tower is not a separate module."""
    torch.manual_seed(1)
    plain = open_clip.create_model(CLIP)
    assert type(plain) is open_clip.CLIP
    loaded = load(save(plain, tmp_path / "plain.pt")).eval()
    plain.eval()
    tokens = torch.randint(1, 1000, (2, 32))
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_text(tokens), plain.encode_text(tokens))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_another_model(load, make_cfg, tmp_path, suffix):
    path = save(load_clip(make_cfg("test-convnext")), tmp_path / f"other{suffix}")
    with pytest.raises(CLIPWeightsError, match=f"{re.escape(str(path))}.*{CLIP}") as error:
        load(path)
    assert_one_sentence(error)


def test_weights_with_additional_parameters(load, source, tmp_path):
    torch.save({**source.state_dict(), "visual.extra": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(CLIPWeightsError, match="more.pt.*visual.extra") as error:
        load(tmp_path / "more.pt")
    assert_one_sentence(error)


@pytest.mark.parametrize("name", ["absent.safetensors", "folder/absent", "sub.folder"])
def test_missing_files_and_folders(load, tmp_path, name):
    (tmp_path / "sub.folder").mkdir()
    with pytest.raises(CLIPWeightsError, match=f"{name}.*does not exist") as error:
        load(tmp_path / name)
    assert_one_sentence(error)


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_files_cannot_run_code(load, tmp_path, suffix, writer):
    path, target = tmp_path / f"bad{suffix}", tmp_path / "was here"
    if writer == "torch":
        torch.save({"weight": Malicious(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Malicious(target)}))
    with pytest.raises(CLIPWeightsError, match=re.escape(str(path))):
        load(path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_unreadable_files(load, tmp_path, suffix, content):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(CLIPWeightsError, match=re.escape(str(path))) as error:
        load(path)
    assert_one_sentence(error)


def test_files_with_other_content(load, tmp_path):
    for i, content in enumerate([{}, [1, 2], torch.zeros(3), {"state_dict": 3}]):
        path = tmp_path / f"{i}.pt"
        torch.save(content, path)
        with pytest.raises(CLIPWeightsError, match=re.escape(str(path))) as error:
            load(path)
        assert_one_sentence(error)


def test_unknown_model(load):
    with pytest.raises(CLIPWeightsError, match="MODEL.CLIP.NAME is 'ViT-B-17'.*list_models"):
        load("", clip="ViT-B-17")


def test_unknown_tag_lists_the_known_ones(load):
    with pytest.raises(CLIPWeightsError, match="PRETRAINED is 'laion3b'.*laion2b_s34b_b88k"):
        load("laion3b", clip="ViT-B-16")
    with pytest.raises(CLIPWeightsError, match=f"'openai'.*'{CLIP}'.*none"):
        load("openai")


def test_weights_of_the_other_activation_are_refused(load):
    """open_clip issue 771: OpenAI's weights load in a GELU model, but all features are wrong."""
    with pytest.raises(CLIPWeightsError, match="'openai'.*QuickGELU.*'ViT-B-16-quickgelu'"):
        load("openai", clip="ViT-B-16")


def test_quickgelu_models_with_weights_of_gelu_are_refused(load, monkeypatch):
    monkeypatch.setattr(
        open_clip, "list_pretrained_tags_by_model", lambda name: ["laion2b_s34b_b88k"]
    )
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"hf_hub": "x/y/"})
    with pytest.raises(CLIPWeightsError, match="trained with GELU.*'ViT-B-16'"):
        load("laion2b_s34b_b88k", clip="ViT-B-16-quickgelu")


def test_a_model_that_open_clip_has_in_one_form_only_is_not_refused(load, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", lambda name, **_: torch.nn.Identity())
    load("laion2b_s12b_b32k", clip="roberta-ViT-B-32")


def test_the_advice_for_weights_with_other_means_of_the_pixels(load, monkeypatch):
    """Without weights, the means of the pixels would be those of another tag."""

    def offline(name, **_):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", offline)
    for tag, advised in (("laion2b_s32b_b82k", False), ("laion400m_e32", True)):
        with pytest.raises(CLIPWeightsError, match="cannot be downloaded") as error:
            load(tag, clip="ViT-L-14")
        assert ("or to ''" in str(error.value)) == advised


def test_the_root_logger_works_after_models_are_built_in_threads(monkeypatch):
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def create_model(name, **_):
        if name == "first":
            first_is_in.set()
            second_is_in.wait(1)  # in vain, because the second waits for the first
        else:
            second_is_in.set()
            first_is_out.wait(1)

    def build(name):
        if name == "second":
            first_is_in.wait()
        create_clip(name)
        first_is_out.set()

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, ("first", "second")))
    assert not logging.getLogger().disabled


@pytest.mark.parametrize(
    "clip, tag",
    [
        ("convnext_base_w_320", "laion_aesthetic_s13b_b82k_augreg"),
        ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup"),
        ("ViT-B-16-quickgelu", "openai"),
        ("ViT-L-14-336-quickgelu", "openai"),
    ],
)
def test_a_tag_that_cannot_be_downloaded(load, monkeypatch, tmp_path, clip, tag):
    """The four backbones of the README have known tags and the right activation."""
    asked = []

    def offline(name, pretrained=None, **kwargs):
        asked.append((name, pretrained))
        raise OSError("We couldn't connect to the hub,\nand could not find it in the cache.")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(CLIPWeightsError, match=f"'{tag}' of '{clip}'.*fetch.*PRETRAINED") as error:
        load(tag, clip=clip)
    assert asked == [(clip, tag)]
    assert "timm/" in str(error.value) or "laion/" in str(error.value)
    assert_one_sentence(error)


def test_open_clip_offline(load, monkeypatch, tmp_path, make_cfg):
    """The download code of open_clip, with an empty cache and no network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    tag = {"hf_hub": "someone/clip/", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "test-convnext", {"tag": tag})
    with pytest.raises(CLIPWeightsError, match="'tag' of 'test-convnext'.*someone/clip") as error:
        load("tag", clip="test-convnext")
    assert_one_sentence(error)


def test_both_towers_are_loaded_from_one_file(make_cfg, source, tmp_path, monkeypatch):
    path = save(source, tmp_path / "weights.pt")
    cfg = make_cfg(CLIP, {"MODEL.CLIP.PRETRAINED": str(path)})
    reads = []
    original = open_clip.load_checkpoint
    monkeypatch.setattr(
        open_clip, "load_checkpoint", lambda *a, **k: reads.append(a) or original(*a, **k)
    )
    with share_clip():
        backbone, text = CLIPBackbone(cfg, None), TextEncoder(cfg)
    assert len(reads) == 1
    assert torch.equal(backbone.visual.proj, source.visual.proj)
    assert torch.equal(text.text.text_projection, source.text.text_projection)
    CLIPBackbone(cfg, None)
    assert len(reads) == 2  # outside of the context nothing is shared
