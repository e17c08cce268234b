"""Weights, pixels, names and freezing of towers of every family."""

import json
import logging

import open_clip
import pytest
import safetensors.torch
import torch

from dcp_clip.modeling import TextEncoder
from dcp_clip.modeling.clip.freezing import freeze_tower
from dcp_clip.modeling.clip.loading import CLIPWeightsError, clip_pixel_stats, load_clip

LOADED = ["sigmoid-loss", "pe-core", "resnet", "fastvit", "coca"]


@pytest.mark.parametrize("name", LOADED)
def test_local_files_of_every_family_are_loaded(make_cfg, family_clip, tmp_path, name):
    source = family_clip(name)
    path = tmp_path / "open_clip_model.safetensors"
    safetensors.torch.save_model(source, path)
    cfg = make_cfg(f"small-{name}", {"MODEL.CLIP.PRETRAINED": str(path)})
    state = load_clip(cfg).state_dict()
    for key, value in source.state_dict().items():
        assert torch.equal(state[key], value), key
    if name == "sigmoid-loss":
        assert state["logit_bias"] == source.logit_bias != 0


def test_pixels_are_those_that_the_file_beside_the_weights_says(make_cfg, family_clip, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(family_clip("sigmoid-loss").state_dict(), path)
    cfg = make_cfg("small-sigmoid-loss", {"MODEL.CLIP.PRETRAINED": str(path)})
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
    assert clip_pixel_stats(load_clip(cfg)) == ([127.5] * 3, [63.75] * 3)
    for content in ("{", "{}", json.dumps({"preprocess_cfg": {"mean": "a"}})):
        config.write_text(content)
        with pytest.raises(CLIPWeightsError, match="open_clip_config.json.*correct or remove it"):
            load_clip(cfg)
    config.unlink()
    mean, _ = clip_pixel_stats(load_clip(cfg))
    assert mean == pytest.approx([255 * x for x in open_clip.OPENAI_DATASET_MEAN])


def test_the_activation_is_the_one_that_the_file_beside_the_weights_says(
    make_cfg, family_clip, tmp_path
):
    path = tmp_path / "weights.pt"
    torch.save(family_clip("sigmoid-loss").state_dict(), path)
    cfg = make_cfg("small-sigmoid-loss", {"MODEL.CLIP.PRETRAINED": str(path)})
    settings = {"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}, "model_cfg": {}}
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps(settings))
    load_clip(cfg)
    config.write_text(json.dumps(settings | {"model_cfg": {"quick_gelu": True}}))
    with pytest.raises(CLIPWeightsError, match="trained with QuickGELU, but .*other activation"):
        load_clip(cfg)


def test_without_that_file_pixels_are_those_of_the_known_weights(
    make_cfg, family_clip, tmp_path, monkeypatch, caplog
):
    """SigLIP's mean is 0.5; the weights of ViT-L-14 do not agree on a mean."""
    known = {
        "a": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
        "b": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    }
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: list(known))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: known[tag])
    path = tmp_path / "weights.pt"
    torch.save(family_clip("sigmoid-loss").state_dict(), path)
    for pretrained in ("", str(path)):
        cfg = make_cfg("small-sigmoid-loss", {"MODEL.CLIP.PRETRAINED": pretrained})
        assert clip_pixel_stats(load_clip(cfg)) == ([127.5] * 3, [127.5] * 3)
    known["c"] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    with caplog.at_level(logging.WARNING):
        mean, _ = clip_pixel_stats(load_clip(cfg))
    assert mean == pytest.approx([255 * x for x in open_clip.OPENAI_DATASET_MEAN])
    assert "different means" in caplog.text and str(path) in caplog.text


def test_open_clip_knows_the_pixels_of_published_siglips():
    """The assumption behind the defaults: all weights of one name agree."""
    for name in ("ViT-B-16-SigLIP2-512", "PE-Core-B-16"):
        for tag in open_clip.list_pretrained_tags_by_model(name):
            assert open_clip.get_pretrained_cfg(name, tag)["mean"] == (0.5, 0.5, 0.5)


def test_names_that_are_close_are_suggested(make_cfg):
    with pytest.raises(CLIPWeightsError, match="did you mean.*'ViT-B-16-SigLIP2-512'"):
        load_clip(make_cfg("ViT-B-16-SigLIP2-513"))


def test_text_towers_of_the_hub_without_their_package_or_file(make_cfg):
    with pytest.raises(CLIPWeightsError, match="'roberta-base'.*pip install transformers") as error:
        load_clip(make_cfg("roberta-ViT-B-32"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, attention, late",
    [
        ("sigmoid-loss", {"attn.qkv", "pos_embed"}, {"attn_pool", "blocks.2."}),
        (
            "eva02",
            {"attn.q_proj", "attn.k_proj", "attn.v_proj", "pos_embed"},
            {"trunk.head", "blocks.2."},
        ),
        (
            "eva02-e",
            {"attn.qkv", "attn.q_bias", "attn.v_bias", "pos_embed"},
            {"trunk.head", "blocks.2."},
        ),
        (
            "resnet",
            {"attnpool.q_proj", "attnpool.k_proj", "attnpool.v_proj", "positional_embedding"},
            {"layer4", "attnpool"},
        ),
        ("fastvit", None, {"stages.3", "final_conv", "trunk.head"}),
        ("swin", None, {"layers.3", "visual.head"}),
        (
            "coca",
            {"attn.in_proj", "positional_embedding"},
            {"attn_pool", "visual.proj", "resblocks.2."},
        ),
    ],
)
def test_policies_select_their_weights(make_cfg, family_backbone, name, attention, late):
    backbone = family_backbone(name)
    for policy, expected in (("attention", attention), ("late", late)):
        cfg = make_cfg(f"small-{name}", {"MODEL.CLIP.TRAIN_IMAGE": policy})
        if expected is None:
            continue
        freeze_tower(cfg, "TRAIN_IMAGE", backbone)
        names = {n for n, p in backbone.named_parameters() if p.requires_grad}
        for part in expected:
            assert any(part in n for n in names), (policy, part)
        assert all(any(part in n for part in expected) for n in names), (policy, names)
    backbone.requires_grad_(True)


def test_text_towers_of_the_hub_with_their_package(make_cfg, tmp_path):
    """A small BERT, whose config is a local file here."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 40}
    transformers.BertConfig(**sizes).save_pretrained(tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": str(tmp_path / "bert")}
    text |= {"hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}
    vision = {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"embed_dim": 40, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "test-bert.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "test-bert.json")
    cfg = make_cfg("test-bert")
    model, tokens = load_clip(cfg), torch.randint(1, 100, (3, 12))
    tokens[:, 8:] = 0
    encoder = TextEncoder(cfg).eval()
    encoder.text.load_state_dict(model.text.state_dict())
    with torch.no_grad():
        expected = model.encode_text(tokens)
        assert expected.shape == (3, 40)
        torch.testing.assert_close(encoder(tokens), expected, rtol=1e-5, atol=1e-5)
