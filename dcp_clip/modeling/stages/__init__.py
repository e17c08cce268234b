"""The five stages, in their order; importing this package registers them.

There is one file for each stage. A large alternative, or a large part of a stage, has its own file.
"""

from dcp_clip.modeling.stages import (  # noqa: F401  (registers the implementations)
    stage1_proposal,
    stage2_text_guidance,
    stage3_coarse_decoder,
    stage4_bilateral_decoder,
    stage4_fine_decoder,
    stage5_class_refinement,
)
