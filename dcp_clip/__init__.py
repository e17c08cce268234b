"""DCP-CLIP: open-vocabulary semantic segmentation, a Detectron2 extension.

Importing the package registers the meta-architecture, its stages and the data sets with Detectron2.
"""

__version__ = "0.2.0"

from dcp_clip import data, emoji_scenes, modeling  # noqa: F401  (registers modules and data sets)
from dcp_clip.config import add_dcp_clip_config, get_cfg, setup_cfg
from dcp_clip.predictor import Prediction, Predictor
from dcp_clip.structures import SemSegProposals
from dcp_clip.vocabulary import Vocabulary

__all__ = [
    "Prediction",
    "Predictor",
    "SemSegProposals",
    "Vocabulary",
    "add_dcp_clip_config",
    "get_cfg",
    "setup_cfg",
]
