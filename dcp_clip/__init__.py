"""DCP-CLIP: open-vocabulary semantic segmentation, a Detectron2 extension.

The names below are loaded when they are first asked for, so that ``python -m dcp_clip.check_env``
can run where torch or Detectron2 are missing. Asking for any of them registers the project's
modules and data sets with Detectron2.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "add_dcp_clip_config": "config",
    "setup_cfg": "config",
    "Predictor": "predictor",
    "SemSegProposals": "structures",
    "Vocabulary": "vocabulary",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dcp_clip' has no attribute '{name}'")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
