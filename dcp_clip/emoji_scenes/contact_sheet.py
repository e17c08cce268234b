"""One page of sample scenes with their label maps, to see at a glance whether they are right."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dcp_clip.emoji_scenes.names import NameList
from dcp_clip.emoji_scenes.scenes import Scene
from dcp_clip.emoji_scenes.subsets import SceneSource
from dcp_clip.utils.image_io import atomic_write
from dcp_clip.vocabulary import Vocabulary

# Pixels between pictures and from line to line; names that are listed below a scene.
_GAP, _LINE, _LINES = 6, 11, 9


def draw_contact_sheet(
    path: Path,
    sources: Sequence[SceneSource],
    names: NameList,
    *,
    scenes: int = 3,
    across: int = 3,
) -> None:
    """Draw the first scenes of each source: image, label map in the names' colours, names.

    They are drawn anew, so none has to be on the disk.

    Args:
        path: PNG file to write.
        sources: what draws the scenes, all of one size.
        names: the list whose ids the sources' vocabularies hold.
        scenes: scenes of each source.
        across: sources in a row of the page.
    """
    size = sources[0].options.size
    cell = size + _GAP
    width, height = scenes * cell + 2 * _GAP, 2 * cell + (_LINES + 3) * _LINE
    across = min(across, len(sources))
    page = Image.new("RGB", (across * width, -(-len(sources) // across) * height), "white")
    for number, source in enumerate(sources):
        left, top = number % across * width + _GAP, number // across * height + _GAP
        vocabulary = names.vocabulary(source.subset.vocabulary)
        styles = source.styles[0] if len(source.styles) == 1 else f"{len(source.styles)} styles"
        title = f"{source.subset.name}: {len(vocabulary)} names, {styles}"
        ImageDraw.Draw(page).text((left, top), title, fill="black")
        for column in range(scenes):
            _draw_scene(page, source(column), vocabulary, left + column * cell, top + _LINE + 4)
    with atomic_write(path) as f:
        page.save(f, format="PNG")


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
