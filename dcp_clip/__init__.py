"""DCP-CLIP: open-vocabulary semantic segmentation, a Detectron2 extension.

Importing the package registers the meta-architecture, its stages and the data sets with Detectron2.
"""

import warnings

__version__ = "0.2.0"

# Detectron2 and fvcore call torch.jit.script when they are imported; PyTorch 2.14 deprecates it.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

from dcp_clip import data, emoji_scenes, model_zoo, modeling  # noqa: E402
from dcp_clip.config import add_dcp_clip_config, get_cfg, setup_cfg  # noqa: E402
from dcp_clip.predictor import Prediction, Predictor  # noqa: E402
from dcp_clip.structures import SemSegProposals  # noqa: E402
from dcp_clip.utils.arguments import escape_unprintable_output  # noqa: E402
from dcp_clip.vocabulary import Vocabulary  # noqa: E402

# Every program, and every process that it starts, imports the package before it prints a name.
escape_unprintable_output()

__all__ = [
    "Prediction",
    "Predictor",
    "SemSegProposals",
    "Vocabulary",
    "add_dcp_clip_config",
    "data",
    "emoji_scenes",
    "get_cfg",
    "model_zoo",
    "modeling",
    "setup_cfg",
]
