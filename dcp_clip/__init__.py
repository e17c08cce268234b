"""DCP-CLIP: open-vocabulary semantic segmentation, a Detectron2 extension.

Importing the package registers the meta-architecture, its stages and the data sets with Detectron2.
"""

import importlib.util
import warnings

from dcp_clip.utils.arguments import escape_unprintable_output
from dcp_clip.vocabulary import Vocabulary

__version__ = "0.2.0"

# Without PyTorch, only dcp_clip.runtime and what it needs can be imported. A PyTorch that is
# installed but cannot be imported is an error.
if importlib.util.find_spec("torch") is not None:
    # Detectron2 and fvcore call torch.jit.script when they are imported; PyTorch 2.14 deprecates
    # it.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

    from dcp_clip import data, emoji_scenes, model_zoo, modeling
    from dcp_clip.config import add_dcp_clip_config, get_cfg, setup_cfg
    from dcp_clip.predictor import Prediction, Predictor
    from dcp_clip.structures import SemSegProposals

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


def __getattr__(name: str) -> object:
    if name in __all__:
        raise ImportError(
            f"dcp_clip.{name} needs PyTorch, which is not installed (docs/install.md); without it, "
            "dcp_clip.runtime runs exported models."
        )
    raise AttributeError(f"module 'dcp_clip' has no attribute '{name}'")
