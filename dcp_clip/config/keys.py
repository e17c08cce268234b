"""Every config key of DCP-CLIP with its meaning and default."""

from detectron2.config import CfgNode as CN

__all__ = ["add_dcp_clip_config"]


def add_dcp_clip_config(cfg: CN) -> None:
    """Add config for DCP-CLIP."""
    _add_clip(cfg)
    _add_model(cfg)
    _add_stages(cfg)
    _add_training_free(cfg)
    _add_baselines(cfg)
    _add_input(cfg)
    _add_training(cfg)
    _add_evaluation(cfg)


def _add_clip(cfg: CN) -> None:
    cfg.MODEL.CLIP = CN()
    # open_clip's model name; `python -c "import open_clip; print(open_clip.list_models())"`.
    cfg.MODEL.CLIP.NAME = "convnext_base_w_320"
    # open_clip's weights tag, or the path of a local file (.safetensors, .pt, .pth, .bin);
    # "" for random weights.
    cfg.MODEL.CLIP.PRETRAINED = ""
    # How the last block of a ViT computes dense features: with the method "maskclip", "clearclip",
    # "sclip", "naclip" or "scclip", or with its normal attention ("clip").
    cfg.MODEL.CLIP.DENSE = "maskclip"
    # Keep the residual connection and the feed-forward part of that block, as MaskCLIP and SCLIP
    # do.
    cfg.MODEL.CLIP.DENSE_RESIDUAL = False
    # Standard deviation of the Gaussian of "naclip", in patches.
    cfg.MODEL.CLIP.NACLIP_STD = 5.0
    # Added to the size of the grid where the position embeddings of a ViT are resized: 0.1 as in
    # DINO, SCLIP, NACLIP and ClearCLIP.
    cfg.MODEL.CLIP.POSITION_OFFSET = 0.0
    # The encoder processes larger images in overlapping windows of this size in pixels; 0 for none.
    cfg.MODEL.CLIP.ENCODER_WINDOW = 0
    # Pixels from one encoder window to the next.
    cfg.MODEL.CLIP.ENCODER_WINDOW_STRIDE = 112
    cfg.MODEL.CLIP.PROXY = CN()
    # A self-supervised tower of timm that gives the attention between the positions, for example
    # "vit_base_patch8_224"; "" for none. It is frozen, and needs MODEL.CLIP.DENSE "maskclip".
    cfg.MODEL.CLIP.PROXY.NAME = ""
    # timm's weights tag, for example "dino", or the path of a local file; "" for random weights.
    cfg.MODEL.CLIP.PROXY.PRETRAINED = ""
    # Which weights of the image and text encoder are trained: "none", "all", "attention" or "late"
    # (dcp_clip/modeling/clip/freezing.py).
    cfg.MODEL.CLIP.TRAIN_IMAGE = "none"
    cfg.MODEL.CLIP.TRAIN_TEXT = "none"


def _add_model(cfg: CN) -> None:
    # Modules of your own that this config needs. `--import` sets it. A config never imports a
    # module itself, so programs refuse a config whose modules are not given with `--import`.
    cfg.MODEL.IMPORTS = ()

    cfg.MODEL.DCP_CLIP = CN()
    # Width d of the decoders, and of the queries and keys of stage 1 (LEARNED).
    cfg.MODEL.DCP_CLIP.DIM = 128
    # Attention heads of stages 1 (LEARNED), 2 and 3.
    cfg.MODEL.DCP_CLIP.NUM_HEADS = 4
    # Factor from cosine similarities to logits. If a stage learns it, this is the initial value.
    cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE = 20.0
    # Run the model under bfloat16 autocast, in training and evaluation, on CPU or GPU. On a CPU it
    # is faster only with AVX-512 BF16 or AMX (`python tools/check_env.py` shows the CPU).
    cfg.MODEL.DCP_CLIP.BF16 = False
    # Keep convolutions in channels-last memory format; faster on CPUs and tensor cores.
    cfg.MODEL.DCP_CLIP.CHANNELS_LAST = False
    # Which logits the model returns: "last", or those of an earlier stage, "fine" or "coarse".
    cfg.MODEL.DCP_CLIP.OUTPUT = "last"

    cfg.MODEL.DCP_CLIP.SLIDING_WINDOW = CN()
    # Evaluate images larger than this many pixels in windows of this size; 0 for whole images.
    # Raise INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST as well, so that images stay large.
    cfg.MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE = 0
    # Pixels from one window to the next; 0 for half a window.
    cfg.MODEL.DCP_CLIP.SLIDING_WINDOW.STRIDE = 0

    cfg.MODEL.DCP_CLIP.VOCABULARY = CN()
    # Prompt templates: "single", "imagenet80", "maskclip85", "vild14", "captions" (the captions of
    # EmojiScenes), or the path of a text file. If a config file names it, the path can be relative
    # to the config file, and otherwise to the current folder.
    cfg.MODEL.DCP_CLIP.VOCABULARY.TEMPLATES = "single"
    # How synonyms are combined: "mean" of their features, "max" (the best synonym at each position
    # counts), or "first" (the main name only).
    cfg.MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING = "mean"
    # Folder that keeps the text features of frozen text towers; "" keeps them in memory only.
    cfg.MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR = "~/.cache/dcp_clip/text"


def _add_stages(cfg: CN) -> None:
    # Stage 1: CategoryProposal, PooledProposal, DenseProposal, AllCategories, OracleProposal.
    cfg.MODEL.DCP_CLIP.PROPOSAL = CN()
    cfg.MODEL.DCP_CLIP.PROPOSAL.NAME = "CategoryProposal"
    # K, the number of proposals in training and evaluation. Stages 2 and 3 choose among this many.
    cfg.MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS = 32
    # Weights of the image-level and of the dense similarity. If stage 1 is learned, a POOLED_WEIGHT
    # of 0 has a higher recall on EmojiScenes (docs/plain_clip.md). Without training they are equal.
    cfg.MODEL.DCP_CLIP.PROPOSAL.POOLED_WEIGHT = 1.0
    cfg.MODEL.DCP_CLIP.PROPOSAL.DENSE_WEIGHT = 1.0
    # Sharpness of the smooth maximum (log-sum-exp) over the positions, in which a match at many
    # positions has a higher score than a match at one. 0 for the maximum.
    cfg.MODEL.DCP_CLIP.PROPOSAL.LSE_SHARPNESS = 20.0
    # Group the tokens of one object by attention, trained with a ranking loss.
    cfg.MODEL.DCP_CLIP.PROPOSAL.LEARNED = True

    # Stage 2: ImageConditionedGuidance, StaticGuidance.
    cfg.MODEL.DCP_CLIP.TEXT_GUIDANCE = CN()
    cfg.MODEL.DCP_CLIP.TEXT_GUIDANCE.NAME = "ImageConditionedGuidance"

    # Stage 3: DualInteractionDecoder, ImageToTextDecoder, TextToImageDecoder, CosineDecoder.
    cfg.MODEL.DCP_CLIP.COARSE_DECODER = CN()
    cfg.MODEL.DCP_CLIP.COARSE_DECODER.NAME = "DualInteractionDecoder"
    # Number of interaction layers.
    cfg.MODEL.DCP_CLIP.COARSE_DECODER.NUM_LAYERS = 2

    # Stage 4: PyramidDecoder, BilinearDecoder, BilateralDecoder.
    cfg.MODEL.DCP_CLIP.FINE_DECODER = CN()
    cfg.MODEL.DCP_CLIP.FINE_DECODER.NAME = "PyramidDecoder"
    # Channels of the image pathway and of the category pathway.
    cfg.MODEL.DCP_CLIP.FINE_DECODER.IMAGE_DIM = 64
    cfg.MODEL.DCP_CLIP.FINE_DECODER.CATEGORY_DIM = 16
    # M, the number of categories that stages 4 and 5 get in training and evaluation: those with the
    # highest coarse probability at any position. 0 for all K proposals. With SLIDING_WINDOW.SIZE it
    # is 2 M in evaluation, because all windows of a large image share these categories.
    cfg.MODEL.DCP_CLIP.FINE_DECODER.NUM_CATEGORIES = 0
    # Normalisation: "GN", "BN", "SyncBN", "LN" or "".
    cfg.MODEL.DCP_CLIP.FINE_DECODER.NORM = "GN"
    # Add the product of pixel features and text features at stride 4.
    cfg.MODEL.DCP_CLIP.FINE_DECODER.PIXEL_TEXT = True
    # Region pooling: at the end of PyramidDecoder, the pixels of a region agree on their category.
    # This is the stride of the pixels, and so of the final logits: 2 or 4; or 0 to leave it out.
    cfg.MODEL.DCP_CLIP.FINE_DECODER.REGION_STRIDE = 0
    # The stride of the positions whose probabilities they share, a multiple of 4. The attention
    # among these positions grows with the square of their number.
    cfg.MODEL.DCP_CLIP.FINE_DECODER.REGION_KEY_STRIDE = 32
    # BilateralDecoder: standard deviation in space, in cells of the coarse grid (at most 1), and in
    # colour, in standard deviations of CLIP's pixels (about 68 grey levels). Larger is smoother.
    cfg.MODEL.DCP_CLIP.FINE_DECODER.GUIDE_REACH = 0.75
    cfg.MODEL.DCP_CLIP.FINE_DECODER.GUIDE_CONTRAST = 0.5

    # Stage 5: MaskPooledRefinement, ReassignmentRefinement (a little better on the unseen names of
    # EmojiScenes), NoRefinement.
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT = CN()
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT.NAME = "MaskPooledRefinement"
    # Use a learned classifier. If False, only the mask-pooled CLIP features decide.
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT.LEARNED = True
    # Only if LEARNED is False: exponent of the mask's probability; the pixel's probability has 1.
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT.WEIGHT = 1.0
    # Temperature of the softmax that turns fine logits into the masks to pool under; above 1 for
    # softer masks.
    cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT.MASK_TEMPERATURE = 1.0


def _add_training_free(cfg: CN) -> None:
    # Only for MODEL.META_ARCHITECTURE "SimilaritySegmentor", which computes labels as training-free
    # publications do (docs/training_free.md). It also reads MODEL.CLIP, VOCABULARY and
    # SIMILARITY_SCALE.
    cfg.MODEL.TRAINING_FREE = CN()
    # Where a window is no multiple of the patch: "none" leaves out the pixels beyond the last whole
    # patch, "end" adds zeros below and on the right, "center" on all sides.
    cfg.MODEL.TRAINING_FREE.PADDING = "none"
    # Pixels with a lower probability are background, which is the first category.
    cfg.MODEL.TRAINING_FREE.PROBABILITY_THRESHOLD = 0.0
    # Categories with at most this share of the area of all categories but the background win no
    # pixel.
    cfg.MODEL.TRAINING_FREE.AREA_THRESHOLD = 0.0
    # Steps of PAMR, which fits the maps to the edges of the image; 0 for none.
    cfg.MODEL.TRAINING_FREE.PAMR_STEPS = 0


def _add_baselines(cfg: CN) -> None:
    # Other segmentation heads to compare with (dcp_clip/modeling/baselines/).
    cfg.MODEL.BASELINES = CN()
    # Channels of the feature pyramid of FPNSegmentor, PixelTextSegmentor and MaskQuerySegmentor; a
    # multiple of 4.
    cfg.MODEL.BASELINES.DIM = 64

    cfg.MODEL.BASELINES.COST_AGGREGATION = CN()
    # Channels of a category's embedded cost map; above 32 and a multiple of NUM_HEADS.
    cfg.MODEL.BASELINES.COST_AGGREGATION.DIM = 128
    # Heads of the attention over positions and over categories.
    cfg.MODEL.BASELINES.COST_AGGREGATION.NUM_HEADS = 4
    # Number of aggregation layers, each over positions and then over categories.
    cfg.MODEL.BASELINES.COST_AGGREGATION.NUM_LAYERS = 2
    # Number of categories, those with the highest cosine similarity at any position; 0 for all.
    cfg.MODEL.BASELINES.COST_AGGREGATION.NUM_NAMES = 32
    # "softmax": the losses of DCP-CLIP. "sigmoid": binary cross-entropy of each category, the loss
    # of CAT-Seg.
    cfg.MODEL.BASELINES.COST_AGGREGATION.LOSS = "softmax"

    cfg.MODEL.BASELINES.MASK_QUERIES = CN()
    # Number of queries; each gives one mask at most.
    cfg.MODEL.BASELINES.MASK_QUERIES.NUM_QUERIES = 24
    # Heads and layers of the transformer decoder.
    cfg.MODEL.BASELINES.MASK_QUERIES.NUM_HEADS = 4
    cfg.MODEL.BASELINES.MASK_QUERIES.NUM_LAYERS = 3
    # Weights of the class, mask and dice losses (also in matching), and of queries without a target
    # in the class loss.
    cfg.MODEL.BASELINES.MASK_QUERIES.CLASS_WEIGHT = 2.0
    cfg.MODEL.BASELINES.MASK_QUERIES.MASK_WEIGHT = 5.0
    cfg.MODEL.BASELINES.MASK_QUERIES.DICE_WEIGHT = 5.0
    cfg.MODEL.BASELINES.MASK_QUERIES.NO_OBJECT_WEIGHT = 0.1
    # Exponents of the probability from mask-pooled CLIP features, for categories of DATASETS.TRAIN
    # and for others. The query's own probability has 1 minus this.
    cfg.MODEL.BASELINES.MASK_QUERIES.SEEN_EXPONENT = 0.4
    cfg.MODEL.BASELINES.MASK_QUERIES.UNSEEN_EXPONENT = 0.8
    # Factor from the cosine similarity of mask-pooled CLIP features to logits; CLIP's is at most
    # 100.
    cfg.MODEL.BASELINES.MASK_QUERIES.CLIP_SCALE = 50.0


def _add_input(cfg: CN) -> None:
    # Your own data: a list of {name: ..., images: folder, labels: folder, names: ..., ignore: 255}
    # to be named in DATASETS.TRAIN and DATASETS.TEST (docs/custom_data.md).
    cfg.DATASETS.SEM_SEG_FOLDERS = ()
    # How often the images of a data set of DATASETS.TRAIN are used in each epoch, for Detectron2's
    # DATALOADER.SAMPLER_TRAIN "WeightedTrainingSampler": [["coco_stuff_sem_seg_train", 0.5], ...];
    # 1 for data sets that are not named.
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = ()
    # CLIP expects RGB; Detectron2's default is BGR.
    cfg.INPUT.FORMAT = "RGB"
    # How test images are resized: "pillow" averages over all pixels when it shrinks an image,
    # "opencv" interpolates between four pixels, as MMSegmentation does.
    cfg.INPUT.RESIZE_TEST = "pillow"
    # SSD's colour augmentation, from Detectron2's PointRend.
    cfg.INPUT.COLOR_AUG_SSD = False
    # Choose another random crop while one category fills more than this fraction of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0


def _add_training(cfg: CN) -> None:
    cfg.MODEL.DCP_CLIP.LOSS = CN()
    # Weights of the cross-entropy and of the dice loss, on coarse, fine and final logits.
    cfg.MODEL.DCP_CLIP.LOSS.CE_WEIGHT = 1.0
    cfg.MODEL.DCP_CLIP.LOSS.DICE_WEIGHT = 1.0
    # Weights of the coarse and of the final logits, relative to 1 for the fine ones.
    cfg.MODEL.DCP_CLIP.LOSS.COARSE_WEIGHT = 0.5
    cfg.MODEL.DCP_CLIP.LOSS.FINAL_WEIGHT = 1.0
    # Weight of the ranking loss of stage 1.
    cfg.MODEL.DCP_CLIP.LOSS.PROPOSAL_WEIGHT = 0.5
    # Weights of the two losses of stage 5.
    cfg.MODEL.DCP_CLIP.LOSS.PRESENCE_WEIGHT = 0.5
    cfg.MODEL.DCP_CLIP.LOSS.MASK_CLASS_WEIGHT = 0.2
    # The weight of a pixel is (frequency of its category in the batch) ** -CLASS_BALANCE; with 0
    # all pixels have the same weight.
    cfg.MODEL.DCP_CLIP.LOSS.CLASS_BALANCE = 0.0

    # "ADAMW", "SGD", or "MUON" (AdamW with orthogonalised steps for matrices). The recipes for
    # COCO-Stuff use AdamW. Muon was better on EmojiScenes.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the matrices that Muon updates, relative to that of the other parameters.
    cfg.SOLVER.MUON_LR_MULTIPLIER = 2.0
    # Learning rates of CLIP's image and text towers, relative to BASE_LR.
    cfg.SOLVER.IMAGE_LR_MULTIPLIER = 0.01
    cfg.SOLVER.TEXT_LR_MULTIPLIER = 0.01
    # A folder or a URL, such as "s3://bucket/run", that gets a copy of each checkpoint, and from
    # which --resume continues if it is newer than OUTPUT_DIR (docs/cluster.md); "" for none.
    cfg.SOLVER.CHECKPOINT_COPY = ""
    # Decay of the exponential moving average of the weights; 0 for none. Evaluation uses the
    # average.
    cfg.SOLVER.EMA_DECAY = 0.0
    # Fraction of CLIP's original weights in the interpolation of the image tower after training
    # (WiSE-FT); 0.0 disables it. If a training continues, it starts from the interpolated weights.
    cfg.SOLVER.WISE_FT_ALPHA = 0.0


def _add_evaluation(cfg: CN) -> None:
    # Give each ground-truth mask the most frequent predicted category of its pixels, so that only
    # the categories can be wrong.
    cfg.TEST.ORACLE_MASKS = False
    # Write every prediction to OUTPUT_DIR/inference/<data set>/sem_seg_predictions.json as COCO
    # RLE. This is slow, and the file is large.
    cfg.TEST.SAVE_PREDICTIONS = False
    # Evaluate only this many images of each data set, evenly spaced in its list; 0 for all.
    cfg.TEST.MAX_IMAGES = 0
    # Test-time augmentation (TEST.AUG.ENABLED): with TEST.AUG.FLIP, the encoder also processes the
    # mirror image, and both also at these sizes, relative to the image and rounded to multiples of
    # the encoder's stride. TEST.AUG.MIN_SIZES and MAX_SIZE are not used.
    cfg.TEST.AUG.SCALES = (0.9, 1.1)
    # Pixels whose confidence is smaller become unknown in `Predictor` and the demo; 0 for none.
    cfg.TEST.UNKNOWN_BELOW = 0.0
