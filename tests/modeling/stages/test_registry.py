"""Each stage can be replaced by name, and every implementation trains and evaluates."""

import pytest
from detectron2.modeling import build_model

NODE = "MODEL.DCP_CLIP."
DEFAULTS = {
    "PROPOSAL": "CategoryProposal",
    "TEXT_GUIDANCE": "ImageConditionedGuidance",
    "COARSE_DECODER": "DualInteractionDecoder",
    "FINE_DECODER": "PyramidDecoder",
    "CLASS_REFINEMENT": "MaskPooledRefinement",
}
ALTERNATIVES = [
    ("PROPOSAL", "PooledProposal"),
    ("PROPOSAL", "DenseProposal"),
    ("PROPOSAL", "AllCategories"),
    ("PROPOSAL", "OracleProposal"),
    ("TEXT_GUIDANCE", "StaticGuidance"),
    ("COARSE_DECODER", "ImageToTextDecoder"),
    ("COARSE_DECODER", "TextToImageDecoder"),
    ("COARSE_DECODER", "CosineDecoder"),
    ("FINE_DECODER", "BilinearDecoder"),
    ("CLASS_REFINEMENT", "ReassignmentRefinement"),
    ("CLASS_REFINEMENT", "NoRefinement"),
]


@pytest.mark.parametrize("clip", ["test-convnext", "test-vit-16"])
@pytest.mark.parametrize("node, name", [("PROPOSAL", "CategoryProposal"), *ALTERNATIVES])
def test_each_implementation_trains_and_evaluates(
    make_model, make_input, train_one_step, evaluate, clip, node, name
):
    model = make_model(clip, {f"{NODE}{node}.NAME": name})
    batch = [make_input(), make_input((64, 33), seed=1, categories=2)]
    _, found, without_gradient = train_one_step(model, batch)
    assert found and not without_gradient, sorted(without_gradient)[:5]
    evaluate(model, batch)


@pytest.mark.parametrize("node", DEFAULTS)
def test_the_error_for_an_unknown_name_lists_the_known_names(make_cfg, node):
    with pytest.raises(KeyError, match=f"{node}.NAME is 'Nonsense'.*{DEFAULTS[node]}"):
        build_model(make_cfg(opts={f"{NODE}{node}.NAME": "Nonsense"}))


@pytest.mark.parametrize(
    "node, old, new",
    [
        ("FINE_DECODER", "GuidedDecoder", "BilateralDecoder"),
        ("CLASS_REFINEMENT", "RenamingRefinement", "ReassignmentRefinement"),
    ],
)
def test_the_error_for_an_old_name_has_the_new_name(make_cfg, node, old, new):
    with pytest.raises(KeyError, match=f"'{old}'.*It is called '{new}' now"):
        build_model(make_cfg(opts={f"{NODE}{node}.NAME": old}))


@pytest.mark.parametrize("whole_model", [True, False])
def test_the_number_of_heads_must_divide_the_width(make_cfg, whole_model):
    opts = {NODE + "NUM_HEADS": 5}
    if not whole_model:  # only stage 1 has attention then
        opts |= {NODE + "TEXT_GUIDANCE.NAME": "StaticGuidance"}
        opts |= {NODE + "COARSE_DECODER.NAME": "CosineDecoder"}
    with pytest.raises(ValueError, match="32 is not a multiple of 5 heads .*NUM_HEADS"):
        build_model(make_cfg(opts=opts))
