"""One page of sample scenes with their label maps, to see at a glance whether they are right."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dcp_clip.data.emoji_scenes.names import NameList
from dcp_clip.data.emoji_scenes.subsets import SceneSource
from dcp_clip.image_io import atomic_write

_GAP, _LINE, _LINES = 6, 11, 7


def draw_contact_sheet(
    path: Path, sources: Sequence[SceneSource], names: NameList, *, columns: int = 6
) -> None:
    """Draw `columns` scenes of each source: image, label map in the names' colours, names.

    The scenes are the first of each subset, drawn anew, so none has to be on the disk.

    Args:
        path: PNG file to write.
        sources: what draws the scenes.
        names: the list whose ids the sources' vocabularies hold.
        columns: scenes of each source.
    """
    size = sources[0].options.size
    width, height = size + _GAP, 2 * size + _LINES * _LINE + 3 * _GAP
    title = 2 * _LINE
    page = Image.new("RGB", (columns * width + _GAP, len(sources) * (height + title)), "white")
    pen = ImageDraw.Draw(page)
    for row, source in enumerate(sources):
        top = row * (height + title)
        vocabulary = names.vocabulary(source.subset.vocabulary)
        pen.text(
            (_GAP, top + _GAP),
            f"{source.subset.name}: {len(vocabulary)} names, styles {', '.join(source.styles)}",
            fill="black",
        )
        palette = np.array(vocabulary.colors, np.uint8)
        for column in range(columns):
            scene = source(column)
            x, y = _GAP + column * width, top + title
            page.paste(Image.fromarray(scene.image), (x, y))
            page.paste(Image.fromarray(palette[scene.labels]), (x, y + size + _GAP // 2))
            present = np.unique(scene.labels)[:_LINES]
            for line, label in enumerate(present):
                text_y = y + 2 * size + _GAP + line * _LINE
                pen.rectangle(
                    (x, text_y + 2, x + 7, text_y + 9), fill=tuple(palette[label].tolist())
                )
                pen.text((x + 11, text_y), vocabulary.display_names[label], fill="black")
    with atomic_write(path) as f:
        page.save(f, format="PNG")
