"""A data set whose sprites are coloured shapes, so that no art is needed."""

import numpy as np
import pytest

from dcp_clip.emoji_scenes.names import load_name_list
from dcp_clip.emoji_scenes.prepare import SOURCES, Settings
from dcp_clip.emoji_scenes.sprites import save_sprites

SIZE = 32  # of the scenes


def make_shapes(size, count, style):
    """`count` discs and squares (size, size, 4) of different colours."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = x * x + y * y < size * size / 4
    shapes = np.zeros((count, size, size, 4), np.uint8)
    for i, shape in enumerate(shapes):
        shape[..., :3] = (37 * i % 256, 91 * i % 256, 60 * style % 256)
        shape[..., 3] = 255 * (disc if i % 2 else 1)
    return shapes


@pytest.fixture(scope="session")
def names():
    return load_name_list()


@pytest.fixture(scope="session")
def sprite_folder(tmp_path_factory, names):
    """Sprites of all eight styles. The style twemoji has two drawings of the first name."""
    folder = tmp_path_factory.mktemp("sprites")
    size = Settings(folder, size=SIZE).sprite_size
    listed = [thing.name for thing in names.things]
    for number, style in enumerate(style for part in SOURCES["npm"] for style in part):
        drawn = listed + listed[:1] if style == "twemoji" else listed
        shapes = make_shapes(size, len(drawn), number)
        save_sprites(folder / f"{style}.npz", drawn, shapes, f"{style}: made for a test")
    return folder


@pytest.fixture
def settings(tmp_path, sprite_folder):
    """Settings of a small data set with sprites and without scenes."""
    settings = Settings(tmp_path, size=SIZE)
    settings.folder.mkdir()
    (settings.folder / "sprites").symlink_to(sprite_folder)
    return settings
