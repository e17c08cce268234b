"""Small random CLIPs of every family, with timm's own builders and few channels."""

import json
from functools import partial

import open_clip
import pytest
import torch
from timm.models import eva, fastvit, register_model, swin_transformer, vitamin
from timm.models.vision_transformer import _create_vision_transformer
from timm.models.vision_transformer_hybrid import ConvStem, _create_vision_transformer_hybrid

from dcp_clip.modeling import CLIPBackbone
from dcp_clip.modeling.clip.dense_attention import DenseAttention
from dcp_clip.modeling.clip.loading import clip_pixel_stats, load_clip

_VIT = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}
_GAP = _VIT | {"class_token": False, "global_pool": "avg", "fc_norm": False}
_EVA = _VIT | {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True}
_EVA = _EVA | {"use_rot_pos_emb": True, "ref_feat_shape": (5, 5), "mlp_ratio": 2}
_POST = _VIT | {"use_post_norm": True}
_PE = _VIT | {"attn_type": "rope", "use_pre_transformer_norm": True, "use_rot_pos_emb": True}
_PE = _PE | {"ref_feat_shape": (4, 4), "rope_grid_offset": 1.0, "rope_grid_indexing": "xy"}
_PE = _PE | {"attn_pool_num_heads": 4, "attn_pool_mlp_ratio": 2.0, "init_values": 0.1}
_REGISTERS = _VIT | {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1, "qk_norm": True}


def _mobileclip_b(variant, **kwargs):
    stem = ConvStem(channels=(8, 8, 32), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0)
    args = {**_VIT, "patch_size": 1, "no_embed_class": True, **kwargs}
    return _create_vision_transformer_hybrid(variant, stem, {"proj": False}, **args)


def _vitamin(variant, **kwargs):
    cfg = vitamin.VitCfg(embed_dim=(8, 16, 32), depths=(1, 1, 1), stem_width=8)
    args = {**_VIT, "patch_size": 1, "mlp_layer": vitamin.GeGluMlp, "mlp_ratio": 2.0}
    args |= {"class_token": False, "global_pool": "avg", "embed_cfg": cfg}
    return vitamin._create_vitamin(variant, **(args | kwargs))


def _fastvit(variant, **kwargs):
    position = partial(fastvit.RepConditionalPosEnc, spatial_shape=(7, 7))
    args = {
        "layers": (1, 1, 1, 1),
        "embed_dims": (8, 16, 32, 64),
        "pos_embs": (None, None, None, position),
        "token_mixers": ("repmixer", "repmixer", "repmixer", "attention"),
    }
    return fastvit._create_fastvit(variant, **(args | kwargs))


def _swin(variant, **kwargs):
    args = {"img_size": 64, "patch_size": 4, "window_size": 2, "embed_dim": 8}
    args |= {"depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 2)}
    return swin_transformer._create_swin_transformer(variant, **(args | kwargs))


def _plain(create, args):
    return lambda variant, **kwargs: create(variant, **(args | kwargs))


# Name of the small tower: builder, a variant of timm for its defaults, timm_pool, timm_proj.
_TIMM = {
    "sigmoid-loss": (
        _plain(_create_vision_transformer, _VIT | {"class_token": False}),
        "vit_base_patch16_siglip_224",
        "map",
        "none",
    ),
    "gap": (
        _plain(_create_vision_transformer, _GAP),
        "vit_medium_patch16_gap_256",
        "",
        "linear",
    ),
    "registers": (
        _plain(_create_vision_transformer, _REGISTERS),
        "vit_base_patch16_224",
        "token",
        "mlp",
    ),
    "eva02": (_plain(eva._create_eva, _EVA), "eva02_base_patch16_clip_224", "token", None),
    "eva02-e": (_plain(eva._create_eva, _POST), "eva02_enormous_patch14_clip_224", "token", None),
    "pe-core": (_plain(eva._create_eva, _PE), "vit_pe_core_base_patch16_224", "map", None),
    "mobileclip-b": (_mobileclip_b, "vit_base_mci_224", "token", None),
    "vitamin": (_vitamin, "vitamin_small_224", "", "linear"),
    "fastvit": (_fastvit, "fastvit_mci0", "avg", None),
    "swin": (_swin, "swin_base_patch4_window7_224", "", "linear"),
}
_OPEN_CLIP = {
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "coca": {"attentional_pool": True, "attn_pooler_queries": 3, "attn_pooler_heads": 2},
    "clipa": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "vit-gap": {"pool_type": "avg"},
    "vit": {"ls_init_value": 0.1},
}
_TEXT = {"context_length": 32, "vocab_size": 1024, "width": 32, "heads": 2, "layers": 2}
_TEXTS = {
    "sigmoid-loss": {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    "coca": {"embed_cls": True, "output_tokens": True},
    "fastvit": {"no_causal_mask": True},
}


def _register(name):
    create, variant, _, _ = _TIMM[name]

    def build(pretrained=False, **kwargs):
        return create(variant, **kwargs)

    build.__name__ = f"small_{name.replace('-', '_')}"
    build.__module__ = __name__
    register_model(build)
    return build.__name__


def _vision(name):
    if name in _TIMM:
        pool, proj = _TIMM[name][2:]
        model = f"small_{name.replace('-', '_')}"
        return {"timm_model_name": model, "timm_pool": pool, "timm_proj": proj}
    transformer = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
    both = _OPEN_CLIP[name]
    return both if name == "resnet" else transformer | both | {"output_tokens": name == "coca"}


@pytest.fixture(scope="session", autouse=True)
def family_clips(tmp_path_factory):
    """Make the small CLIPs known to open_clip as "small-<name>"."""
    folder = tmp_path_factory.mktemp("family_configs")
    for name in _TIMM:
        _register(name)
    for name in (*_TIMM, *_OPEN_CLIP):
        # The width of the towers, as some have no projection.
        config = {"embed_dim": 32, "vision_cfg": {"image_size": 64, **_vision(name)}}
        config["text_cfg"] = _TEXT | _TEXTS.get(name, {})
        if name == "sigmoid-loss":
            config["init_logit_bias"] = -10
        if name == "coca":
            config["multimodal_cfg"] = _TEXT | {"attn_pooler_heads": 2}
        (folder / f"small-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="session")
def family_clip(make_cfg, randomize):
    """``family_clip(name)``: open_clip's model, randomised; the same object each time."""
    models = {}

    def make(name):
        if name not in models:
            torch.manual_seed(0)
            clip = load_clip(make_cfg(f"small-{name}"))
            if name == "coca":  # open_clip leaves this matrix uninitialised, so it can have NaN
                torch.nn.init.normal_(clip.text_decoder.text_projection)
            models[name] = randomize(clip).eval()
        return models[name]

    return make


@pytest.fixture(scope="session")
def family_backbone(family_clip):
    """``family_backbone(name, attention)``: the image encoder around the tower of `family_clip`."""

    def make(name, attention="maskclip", **options):
        clip = family_clip(name)
        mean, std = clip_pixel_stats(clip)
        attention = DenseAttention(attention, **options)
        return CLIPBackbone(
            visual=clip.visual, pixel_mean=mean, pixel_std=std, dense_attention=attention
        ).eval()

    return make


@pytest.fixture(scope="session")
def training_free():
    """The keys of configs/training_free/Base.yaml that choose the stages."""
    node = "MODEL.DCP_CLIP."
    return {
        node + "PROPOSAL.LEARNED": False,
        node + "TEXT_GUIDANCE.NAME": "StaticGuidance",
        node + "COARSE_DECODER.NAME": "CosineDecoder",
        node + "FINE_DECODER.NAME": "BilateralDecoder",
        node + "CLASS_REFINEMENT.LEARNED": False,
    }


@pytest.fixture(scope="session")
def run_and_capture():
    """``run_and_capture(backbone, module, images)``: the outputs of the encoder, and the input and
    output of a module of its tower."""

    def run(backbone, module, images):
        captured = []

        def hook(_, args, kwargs, out):
            captured.append((args[0], out))

        handle = module.register_forward_hook(hook, with_kwargs=True)
        out = backbone(images)
        handle.remove()
        return out, *captured[0]

    return run
