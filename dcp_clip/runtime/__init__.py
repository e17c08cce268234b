"""Run an exported model without PyTorch; docs/export.md lists the packages that it needs."""

from dcp_clip.found_categories import FoundCategory
from dcp_clip.runtime.folder import RuntimeFolderError
from dcp_clip.runtime.prediction import Prediction
from dcp_clip.runtime.predictor import OnnxPredictor

__all__ = ["FoundCategory", "OnnxPredictor", "Prediction", "RuntimeFolderError"]
