"""An image with sample scenes and their label maps, for a check by eye."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dcp_clip.emoji_scenes.names import NameList
from dcp_clip.emoji_scenes.scenes import Scene
from dcp_clip.emoji_scenes.subsets import SceneSource
from dcp_clip.utils.images.writing import write_image
from dcp_clip.vocabulary import Vocabulary

# Gap between images and height of a line in pixels; largest number of names below a scene.
_GAP, _LINE, _LINES = 6, 11, 9
# Number of scenes of each source, and of sources in a row of the page.
_SCENES = _ACROSS = 3


def draw_contact_sheet(path: Path, sources: Sequence[SceneSource], names: NameList) -> None:
    """Draw the first scenes of each subset: image, coloured label map and names.

    The scenes are drawn again, so they need not be on the disk.

    Args:
        path: PNG file to write.
        sources: sources of the scenes, all of the same size.
        names: the list of names.
    """
    size = sources[0].options.size
    cell = size + _GAP
    width, height = _SCENES * cell + 2 * _GAP, 2 * cell + (_LINES + 3) * _LINE
    across = min(_ACROSS, len(sources))
    page = Image.new("RGB", (across * width, -(-len(sources) // across) * height), "white")
    for number, source in enumerate(sources):
        left, top = number % across * width + _GAP, number // across * height + _GAP
        vocabulary = names.vocabulary(source.subset.vocabulary)
        styles = source.styles[0] if len(source.styles) == 1 else f"{len(source.styles)} styles"
        title = f"{source.subset.name}: {len(vocabulary)} names, {styles}"
        ImageDraw.Draw(page).text((left, top), title, fill="black")
        for column in range(_SCENES):
            _draw_scene(page, source(column), vocabulary, left + column * cell, top + _LINE + 4)
    write_image(path, page, format="PNG")


def _draw_scene(page: Image.Image, scene: Scene, vocabulary: Vocabulary, x: int, y: int) -> None:
    pen = ImageDraw.Draw(page)
    palette = np.array(vocabulary.colors, np.uint8)
    page.paste(Image.fromarray(scene.image), (x, y))
    y += len(scene.image) + 2
    page.paste(Image.fromarray(palette[scene.labels]), (x, y))
    y += len(scene.image) + 2
    for label in np.unique(scene.labels)[:_LINES]:
        pen.rectangle((x, y + 2, x + 7, y + 9), fill=vocabulary.colors[label])
        pen.text((x + 11, y), vocabulary.display_names[label], fill="black")
        y += _LINE
