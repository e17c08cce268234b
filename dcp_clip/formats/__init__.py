"""A label map in the formats of other tools.

Every function takes a label map, (H, W) category ids, and the `Vocabulary` of the ids. Other values
than ids, such as the unknown id, are no category and appear in no format. `confidence`, (H, W), is
optional: the score of a category is its mean over the pixels of the category.
"""

from dcp_clip.formats.arrays import to_fiftyone, to_huggingface, to_supervision
from dcp_clip.formats.coco import to_coco
from dcp_clip.formats.label_studio import to_label_studio
from dcp_clip.formats.labelme import to_labelme
from dcp_clip.formats.polygons import to_polygons

__all__ = [
    "to_coco",
    "to_fiftyone",
    "to_huggingface",
    "to_label_studio",
    "to_labelme",
    "to_polygons",
    "to_supervision",
]
