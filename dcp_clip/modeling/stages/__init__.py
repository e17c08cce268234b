"""The five stages, in their order; importing this package registers them.

Each stage is one file. A second implementation of a stage, or a large part of one, has a file of
its own beside it.
"""

from dcp_clip.modeling.stages import (  # noqa: F401  (registers the implementations)
    stage1_proposal,
    stage2_text_guidance,
    stage3_coarse_decoder,
    stage4_bilateral_decoder,
    stage4_fine_decoder,
    stage5_class_refinement,
)
