"""A segmentation as the page draws it: pictures of ids and confidence, and a table of regions."""

import base64
from typing import Any

import cv2
import numpy as np

from dcp_clip.predictor import EncodedImage, Prediction
from dcp_clip.utils.images.reading import reduced_size
from dcp_clip.utils.label_maps import UNKNOWN_COLOR

__all__ = ["describe_regions", "make_view"]

# The page draws pictures of at most this size; downloads have the size of the image.
_MAX_PIXELS = 1_000_000


def describe_regions(prediction: Prediction) -> list[dict[str, Any]]:
    """Return the table of shares, the largest area first.

    Returns:
        one dict for each category in the label map: "id" (its value in the label map), "name",
        "share" of the area (0 to 1), mean "confidence" of its pixels (0 to 1), "color" ("#rrggbb"),
        and "unknown" (whether it stands for the unknown pixels).
    """
    confidence, labels = prediction.confidence, prediction.label_map
    size = int(labels.max()) + 1
    count, total = np.zeros(size, np.int64), np.zeros(size)
    # One row at a time: copies of large maps would take 8 bytes per pixel.
    for row, values in zip(labels, confidence, strict=True):
        count += np.bincount(row, minlength=size)
        total += np.bincount(row, weights=values, minlength=size)
    regions = []
    for category in prediction.found:
        unknown = category.score is None
        color = UNKNOWN_COLOR if unknown else prediction.vocabulary.colors[category.id]
        regions.append(
            {
                "id": category.id,
                "name": category.name,
                "share": round(category.share, 5),
                "confidence": round(total[category.id] / count[category.id], 4),
                "color": "#{:02x}{:02x}{:02x}".format(*color),
                "unknown": unknown,
            }
        )
    return regions


def make_view(image: EncodedImage, prediction: Prediction) -> dict[str, Any]:
    """Return what static/viewer.js draws.

    Returns:
        "photo": the image; "labels": a picture of the same size whose pixels are (index of the
        region modulo 256, index divided by 256, confidence in percent); both are data URLs.
        "regions": see `describe_regions`. "milliseconds", and "names": the number of names.
    """
    regions = describe_regions(prediction)
    height, width = reduced_size(image.size, _MAX_PIXELS)
    photo = cv2.resize(image.image, (width, height), interpolation=cv2.INTER_AREA)
    # The pixel in the middle of each pixel of the picture.
    rows, columns = (
        (2 * np.arange(n) + 1) * full // (2 * n)
        for n, full in zip((height, width), prediction.label_map.shape, strict=True)
    )
    pick = np.ix_(rows, columns)
    # The id of each region leads to its index.
    index = np.zeros(max(region["id"] for region in regions) + 1, np.uint16)
    index[[region["id"] for region in regions]] = np.arange(len(regions))
    labels = index[prediction.label_map[pick]]
    percent = np.rint(100 * prediction.confidence[pick].astype(np.float32))
    coded = np.dstack([labels % 256, labels // 256, percent]).astype(np.uint8)
    return {
        "photo": _data_url(photo, ".jpg"),
        "labels": _data_url(coded, ".png"),
        "regions": regions,
        "milliseconds": round(prediction.milliseconds),
        "names": len(prediction.vocabulary),
    }


def _data_url(picture: np.ndarray, suffix: str) -> str:
    """Encode an (H, W, 3) uint8 RGB picture."""
    kind = {".jpg": "image/jpeg", ".png": "image/png"}[suffix]
    _, content = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
