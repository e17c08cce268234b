"""Every config key of DCP-CLIP, its meaning and its default, on top of Detectron2's."""

from detectron2.config import CfgNode as CN

__all__ = ["add_dcp_clip_config"]


def add_dcp_clip_config(cfg: CN) -> None:
    """Add config for DCP-CLIP."""
    _add_clip(cfg)
    _add_stages(cfg)
    _add_reference(cfg)
    _add_training(cfg)
    _add_evaluation(cfg)
    _add_pretraining(cfg)


def _add_clip(cfg: CN) -> None:
    cfg.MODEL.CLIP = CN()
    # open_clip's model name; `python -c "import open_clip; print(open_clip.list_models())"`.
    cfg.MODEL.CLIP.NAME = "convnext_base_w_320"
    # open_clip's weights tag, or the path of a local file (.safetensors, .pt, .pth, .bin);
    # "" for random weights.
    cfg.MODEL.CLIP.PRETRAINED = ""
    # How a ViT's dense map is read, by the attention of its last block: "value" (MaskCLIP's),
    # "query" (ClearCLIP), "correlative" (SCLIP), "neighbour" (NACLIP) or "tokens" (as CLIP was
    # trained).
    cfg.MODEL.CLIP.DENSE = "value"
    # Keep that block's residual and feed-forward part in the reading, as MaskCLIP and SCLIP do.
    cfg.MODEL.CLIP.DENSE_RESIDUAL = False
    # Reach of "neighbour": standard deviation of its Gaussian, in patches.
    cfg.MODEL.CLIP.NEIGHBOUR_STD = 5.0
    # Side of the overlapping windows in which larger images are encoded, in pixels; 0 for none.
    cfg.MODEL.CLIP.WINDOW = 0
    # Pixels from one window to the next.
    cfg.MODEL.CLIP.WINDOW_STRIDE = 112
    # Resample a ViT's layers to strides 4, 8, 16 in the backbone. PyramidDecoder projects them to
    # few channels and resamples then, which is the same and cheaper; set it for other decoders.
    cfg.MODEL.CLIP.RESAMPLE = False
    # What trains in the towers: "none", "all", "attention" or "late" (modeling/trainable.py).
    cfg.MODEL.CLIP.TRAIN_IMAGE = "none"
    cfg.MODEL.CLIP.TRAIN_TEXT = "none"


def _add_stages(cfg: CN) -> None:
    cfg.MODEL.DCP_CLIP = CN()
    # Decoder width d.
    cfg.MODEL.DCP_CLIP.DIM = 128
    # Heads of the decoder's attention.
    cfg.MODEL.DCP_CLIP.NUM_HEADS = 4
    # From cosines to logits: the initial factor where it is learned.
    cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE = 20.0
    # Run the model under bfloat16 autocast, in training and evaluation, on CPU or GPU. On a CPU it
    # pays only with AVX-512 BF16 or AMX (`python -m dcp_clip.check_env` tells).
    cfg.MODEL.DCP_CLIP.BF16 = False
    # Keep convolutions in channels-last memory format; pays on CPUs and tensor cores.
    cfg.MODEL.DCP_CLIP.CHANNELS_LAST = False
    # Run CLIP's image tower through torch.compile, unless it trains. The first image takes longer,
    # as do a few of other sizes until sizes are dynamic; where compiling fails a warning says so.
    cfg.MODEL.DCP_CLIP.COMPILE = False

    # The maps that are the answer: "last", or an earlier stage's, "fine" or "coarse".
    cfg.MODEL.DCP_CLIP.OUTPUT = "last"

    cfg.MODEL.DCP_CLIP.SLIDING_WINDOW = CN()
    # Evaluate images larger than this many pixels in windows of this size; 0: always whole. Set
    # INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST, too, so that images come in large.
    cfg.MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE = 0
    # Pixels from one window to the next; 0: half a window.
    cfg.MODEL.DCP_CLIP.SLIDING_WINDOW.STRIDE = 0

    cfg.MODEL.DCP_CLIP.VOCABULARY = CN()
    # Prompt templates: "single", "imagenet80", "vild14", "captions" (as the drawings of EmojiScenes
    # are captioned), or the path of a text file.
    cfg.MODEL.DCP_CLIP.VOCABULARY.TEMPLATES = "single"
    # Synonyms: "mean" of their features, "max" (the best synonym speaks for the category), or
    # "first" (the main name alone).
    cfg.MODEL.DCP_CLIP.VOCABULARY.SYNONYMS = "mean"
    # Prompts encoded at once; bounds memory. A chunk holds prompts of about one length, and short
    # chunks are filled up, so that a name's features are the same to the last bit in every
    # vocabulary.
    cfg.MODEL.DCP_CLIP.VOCABULARY.CHUNK_SIZE = 32
    # Folder where text features of frozen towers are kept; "" keeps them in memory only.
    cfg.MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR = "~/.cache/dcp_clip/text"

    # Stage 1: CategoryProposal, PooledProposal, DenseProposal, AllCategories, OracleProposal.
    cfg.MODEL.DCP_CLIP.PROPOSAL = CN()
    cfg.MODEL.DCP_CLIP.PROPOSAL.NAME = "CategoryProposal"
    # K, in training and test: the decoders learn to choose among so many. For a test with very many
    # names more may be better (docs/emoji_scenes.md).
    cfg.MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS = 32
    # Weights of the image-level and of the dense evidence. Public CLIPs were trained on the first;
    # where the dense map was (EmojiScenes), 0 for the first measures better.
    cfg.MODEL.DCP_CLIP.PROPOSAL.POOLED_WEIGHT = 1.0
    cfg.MODEL.DCP_CLIP.PROPOSAL.DENSE_WEIGHT = 1.0
    # Sharpness of the soft maximum over the positions, which also counts how much of the image
    # agrees; 0 for the maximum itself.
    cfg.MODEL.DCP_CLIP.PROPOSAL.SHARPNESS = 20.0
    # The names are ranked on at most this many vectors, into which similar positions are merged, so
    # that the cost of 20,000 names stays small; 0 for every position of the grid.
    cfg.MODEL.DCP_CLIP.PROPOSAL.NUM_POSITIONS = 128
    # Group the positions of one thing, learned by a loss on the ranking.
    cfg.MODEL.DCP_CLIP.PROPOSAL.LEARNED = True
    # In training, the chance of each category to be ranked at random.
    cfg.MODEL.DCP_CLIP.PROPOSAL.RANDOM_RATIO = 0.1

    # Stage 2: ImageConditionedGuidance, StaticGuidance.
    cfg.MODEL.DCP_CLIP.TEXT_GUIDANCE = CN()
    cfg.MODEL.DCP_CLIP.TEXT_GUIDANCE.NAME = "ImageConditionedGuidance"

    # Stage 3: DualInteractionDecoder, ImageToTextDecoder, TextToImageDecoder, CosineDecoder.
    cfg.MODEL.DCP_CLIP.COARSE_DECODER = CN()
    cfg.MODEL.DCP_CLIP.COARSE_DECODER.NAME = "DualInteractionDecoder"
    # Rounds of interaction.
    cfg.MODEL.DCP_CLIP.COARSE_DECODER.NUM_LAYERS = 2

    # Stage 4: PyramidDecoder, BilinearDecoder, GuidedDecoder.
    cfg.MODEL.DCP_CLIP.FINE_DECODER = CN()
    cfg.MODEL.DCP_CLIP.FINE_DECODER.NAME = "PyramidDecoder"
    # Channels of the image pathway and of the category pathway.
    cfg.MODEL.DCP_CLIP.FINE_DECODER.IMAGE_DIM = 64
    cfg.MODEL.DCP_CLIP.FINE_DECODER.CATEGORY_DIM = 16
    # "GN", "BN", "SyncBN", "LN" or "".
    cfg.MODEL.DCP_CLIP.FINE_DECODER.NORM = "GN"
    # Add the product of pixel and name features at stride 4.
    cfg.MODEL.DCP_CLIP.FINE_DECODER.PIXEL_TEXT = True
    # GuidedDecoder: how far it looks, in cells of the coarse grid (at most 1), and which difference
    # in colour separates, in standard deviations of CLIP's pixels (about 68 grey levels). Larger is
    # smoother.
    cfg.MODEL.DCP_CLIP.FINE_DECODER.GUIDE_REACH = 0.75
    cfg.MODEL.DCP_CLIP.FINE_DECODER.GUIDE_CONTRAST = 0.5

    # Stage 5: MaskPooledRefinement, RenamingRefinement (better on EmojiScenes' unseen style,
    # the same elsewhere), NoRefinement.
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT = CN()
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT.NAME = "MaskPooledRefinement"
    # Without a learned correction, the mask-pooled CLIP evidence itself corrects the names.
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT.LEARNED = True
    # Its weight there: the exponent of the mask's probability beside 1 for the pixel's.
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT.WEIGHT = 1.0
    # What the fine logits are divided by before they become the masks that are pooled under; above
    # 1 for softer masks.
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT.MASK_TEMPERATURE = 1.0
    # Width of the network that weighs the evidence.
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT.HIDDEN_DIM = 32


def _add_reference(cfg: CN) -> None:
    # The reference heads that configs compare with (modeling/reference/).
    cfg.MODEL.REFERENCE = CN()
    # Channels of the pyramid of PixelTextSegmentor and MaskQuerySegmentor; a multiple of 4.
    cfg.MODEL.REFERENCE.DIM = 64

    cfg.MODEL.REFERENCE.COST_AGGREGATION = CN()
    # Channels of a category's embedded cost map; a multiple of 16 and of the heads.
    cfg.MODEL.REFERENCE.COST_AGGREGATION.DIM = 64
    # Heads of the attention between categories.
    cfg.MODEL.REFERENCE.COST_AGGREGATION.NUM_HEADS = 4
    # Rounds of aggregation over positions and over categories.
    cfg.MODEL.REFERENCE.COST_AGGREGATION.NUM_LAYERS = 2
    # Categories upsampled at once in evaluation; bounds memory.
    cfg.MODEL.REFERENCE.COST_AGGREGATION.CHUNK_SIZE = 64

    cfg.MODEL.REFERENCE.MASK_QUERIES = CN()
    # Queries, each a mask at most.
    cfg.MODEL.REFERENCE.MASK_QUERIES.NUM_QUERIES = 24
    # Heads and layers of their transformer decoder.
    cfg.MODEL.REFERENCE.MASK_QUERIES.NUM_HEADS = 4
    cfg.MODEL.REFERENCE.MASK_QUERIES.NUM_LAYERS = 3
    # Weights of the losses of class, mask and region (also in matching), and in the first of
    # queries without a target.
    cfg.MODEL.REFERENCE.MASK_QUERIES.CLASS_WEIGHT = 2.0
    cfg.MODEL.REFERENCE.MASK_QUERIES.MASK_WEIGHT = 5.0
    cfg.MODEL.REFERENCE.MASK_QUERIES.DICE_WEIGHT = 5.0
    cfg.MODEL.REFERENCE.MASK_QUERIES.NO_OBJECT_WEIGHT = 0.1
    # Exponents of the probability by mask-pooled CLIP features, for names in the vocabulary of
    # DATASETS.TRAIN and for others; the query's own has 1 less that.
    cfg.MODEL.REFERENCE.MASK_QUERIES.SEEN_EXPONENT = 0.4
    cfg.MODEL.REFERENCE.MASK_QUERIES.UNSEEN_EXPONENT = 0.8
    # From the cosines of mask-pooled CLIP features to logits: CLIP's own factor is at most 100.
    cfg.MODEL.REFERENCE.MASK_QUERIES.CLIP_SCALE = 50.0


def _add_training(cfg: CN) -> None:
    cfg.MODEL.DCP_CLIP.LOSS = CN()
    # Weights of the per-pixel and the region loss, on coarse, fine and final maps.
    cfg.MODEL.DCP_CLIP.LOSS.CE_WEIGHT = 1.0
    cfg.MODEL.DCP_CLIP.LOSS.DICE_WEIGHT = 1.0
    # Weight of stage 1's loss.
    cfg.MODEL.DCP_CLIP.LOSS.PROPOSAL_WEIGHT = 0.5
    # Weights of stage 5's losses.
    cfg.MODEL.DCP_CLIP.LOSS.PRESENCE_WEIGHT = 0.5
    cfg.MODEL.DCP_CLIP.LOSS.MASK_CLASS_WEIGHT = 0.2
    # Weights of the coarse and of the final maps, beside 1 for the fine ones.
    cfg.MODEL.DCP_CLIP.LOSS.COARSE_WEIGHT = 0.5
    cfg.MODEL.DCP_CLIP.LOSS.FINAL_WEIGHT = 1.0
    # Pixels weigh frequency**-BALANCE of their category in the batch; 0 weighs all alike.
    cfg.MODEL.DCP_CLIP.LOSS.BALANCE = 0.0
    # Pixels between the positions at which maps and labels are compared.
    cfg.MODEL.DCP_CLIP.LOSS.STRIDE = 4

    # "ADAMW", "SGD", or "MUON": AdamW with orthogonal steps for matrices, at MUON_LR_FACTOR times
    # the rate. The field's recipes are AdamW's; Muon is measured better on EmojiScenes alone.
    # Learning rates of CLIP's towers relative to BASE_LR.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.MUON_LR_FACTOR = 2.0
    cfg.SOLVER.LR_FACTOR_IMAGE = 0.01
    cfg.SOLVER.LR_FACTOR_TEXT = 0.01
    # Iterations at the start in which CLIP's image tower stays as it is.
    cfg.SOLVER.FREEZE_IMAGE_ITERS = 0
    # Share of the weights that CLIP brought in the image tower at the end of training; 0.0 for the
    # trained weights alone. A training that goes on from its end begins with the mixture.
    cfg.SOLVER.CLIP_SHARE_IMAGE = 0.0
    # Of the schedule "WarmupPolyLR": its power, and the lowest factor of BASE_LR.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    # Moving average of the weights: what is evaluated, whatever checkpoint it is read from; 0 for
    # none.
    cfg.SOLVER.EMA_DECAY = 0.0
    # Your own data: a list of {name: ..., images: folder, labels: folder, names: ..., ignore: 255}
    # to be named in DATASETS.TRAIN and DATASETS.TEST (docs/custom_data.md).
    cfg.DATASETS.SEM_SEG_FOLDERS = ()
    # The order that CLIP's pixel statistics are in; Detectron2's default is BGR.
    cfg.INPUT.FORMAT = "RGB"
    # SSD's colour augmentation (Detectron2's PointRend has it).
    cfg.INPUT.COLOR_AUG_SSD = False
    # A crop is drawn again while one category fills more than this share of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # The baseline that configs compare with (modeling/fpn_baseline.py).
    cfg.MODEL.FPN_BASELINE = CN()
    # Channels of its pyramid.
    cfg.MODEL.FPN_BASELINE.DIM = 64


def _add_evaluation(cfg: CN) -> None:
    # Boundary IoU as well (evaluation/boundary.py); slow.
    cfg.TEST.BOUNDARY_IOU = False
    # An oracle: the true mask of each category in an image gets the name that most of its pixels
    # were given, so that outlines cannot be wrong.
    cfg.TEST.TRUE_MASKS = False
    # Write every prediction to OUTPUT_DIR/inference/<data set>/sem_seg_predictions.json (COCO's
    # run-length encoding); slow, and large.
    cfg.TEST.SAVE_PREDICTIONS = False


def _add_pretraining(cfg: CN) -> None:
    # Contrastive pre-training of a small CLIP on drawings (tools/pretrain_clip.py).
    cfg.PRETRAIN = CN()
    # Sides, in pixels, of pictures of one thing and of several; each batch draws one.
    cfg.PRETRAIN.SINGLE_SIZES = (48, 64)
    cfg.PRETRAIN.SCENE_SIZES = (80, 96, 112, 128, 160)
    # Pixels of a batch of each kind: the number of pictures follows from their size.
    cfg.PRETRAIN.SINGLE_PIXELS = 1048576
    cfg.PRETRAIN.SCENE_PIXELS = 786432
    # Share of the schedule with pictures of one thing only; then both kinds alternate.
    cfg.PRETRAIN.SINGLES_UNTIL = 0.35
    # Share of the schedule in which drawings are warped and tinted strongly; then mildly.
    cfg.PRETRAIN.STRONG_UNTIL = 0.5
    # Captions beside the name alone: a set of prompt templates or a file.
    cfg.PRETRAIN.TEMPLATES = "captions"
    # Weight of the loss of the dense map, beside 1 for that of the whole picture.
    cfg.PRETRAIN.DENSE_WEIGHT = 0.5
