"""The samples to click: drawings that ship with the page, and photographs of installed packages."""

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dcp_clip.utils.images.files import open_image
from dcp_clip.utils.images.samples import find_photographs

__all__ = ["Sample", "find_samples", "samples_html"]

_FOLDER = Path(__file__).with_name("samples")
_DRAWINGS = "emoji_scenes/dcp_clip_tiny.yaml"
_STREETS = "camvid/dcp_clip_tiny.yaml"


@dataclass(frozen=True)
class Sample:
    """An image with names for it.

    Attributes:
        path: the image file.
        names: the vocabulary.
        config_file: config of the model that knows such images.
        unknown_below: see `Predictor.__call__`.
    """

    path: Path
    names: str
    config_file: str
    unknown_below: float = 0.0


_SHIPPED = (
    ("pumpkin", "auto rickshaw; bat; jack-o'-lantern; raccoon; spaghetti; sand; night sky; pizza"),
    ("fox", "fox; volcano; ringed planet; broccoli; thread; wallpaper; checkered tablecloth; dog"),
    ("orca", "basketball; coral; orca; stone wall; wheat field; shark; snow"),
)


def find_samples() -> list[Sample]:
    """Return the samples on this machine."""
    drawings = [Sample(_FOLDER / f"{name}.jpg", names, _DRAWINGS) for name, names in _SHIPPED]
    names = "sky; tree; building; road"
    # The photograph is no street, so the model is unsure of a part of it.
    photographs = [Sample(path, names, _STREETS, 0.5) for path in find_photographs()[:1]]
    return drawings + photographs


def samples_html(samples: list[Sample]) -> str:
    """Return a row of buttons, one for each sample."""
    buttons = []
    for i, sample in enumerate(samples):
        with open_image(sample.path) as image:
            picture = image.convert("RGB")
        picture.thumbnail((240, 240), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        picture.save(content, format="JPEG", quality=85)
        url = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
        title = html.escape(f"Sample: {sample.names}")
        buttons.append(
            f'<button type="button" data-sample="{i}" title="{title}" aria-label="{title}">'
            f'<img src="{url}" alt=""></button>'
        )
    return f'<div class="samples"><span>Or try</span>{"".join(buttons)}</div>'
