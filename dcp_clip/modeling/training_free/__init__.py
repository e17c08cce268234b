"""CLIP's similarity as training-free publications evaluate it, step by step.

``configs/training_free/published/`` has the settings of each publication, docs/training_free.md the
table of their figures. The five stages of DCP-CLIP are not used.
"""

from dcp_clip.modeling.training_free.segmentor import SimilaritySegmentor

__all__ = ["SimilaritySegmentor"]
