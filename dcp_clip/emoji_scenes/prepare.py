"""Writes EmojiScenes: first the sprites, then the scenes. Existing files are kept."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.convert import run_parallel, visible_files
from dcp_clip.emoji_scenes.art import (
    ART,
    SEEN_ART,
    UNSEEN_ART,
    ArtPackage,
    ArtSet,
    fetch_art,
    find_drawings,
    read_art,
    read_pip_art,
)
from dcp_clip.emoji_scenes.names import NameList, load_name_list
from dcp_clip.emoji_scenes.register import BENCHMARK, FOLDER, SETTINGS_FILE, scene_list
from dcp_clip.emoji_scenes.scenes import SceneOptions
from dcp_clip.emoji_scenes.sprites import (
    check_renderer,
    describe_sprites,
    render_drawing,
    save_sprites,
)
from dcp_clip.emoji_scenes.subsets import SEEN, UNSEEN, SceneSource, get_subset
from dcp_clip.utils.atomic_files import atomic_write, remove_unfinished
from dcp_clip.utils.images.writing import write_png

logger = logging.getLogger(__name__)

# Increase it if a change of the code gives other pixels for the same settings.
FORMAT = 1
# Sources of the art, with their styles as (seen, unseen).
SOURCES = {
    "npm": (tuple(a.style for a in SEEN_ART), (UNSEEN_ART.style,)),
    "pip": (("openmoji",), ()),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the data set. They are stored in its folder, so that scenes are not mixed.

    Attributes:
        root: folder of all data sets.
        source: ``"npm"`` (the benchmark) or ``"pip"`` (one seen style).
        size: size of the scenes in pixels.
        seed: seed of the scenes.
        only: the styles to draw in; () for all of the source. A selection is not the benchmark.
        art: folder of the npm archives; default: ``art`` in the folder of the data set.
        packages: the npm packages of the benchmark.
        pretraining_art: npm packages that only the pre-training of CLIP uses; their sprites are
            written too.
        names: the list of names.
    """

    root: Path
    source: str = "npm"
    size: int = 128
    seed: int = 0
    only: tuple[str, ...] = ()
    art: Path | None = None
    packages: Sequence[ArtPackage] = ART
    pretraining_art: Sequence[ArtPackage] = ()
    names: NameList = field(default_factory=load_name_list)

    @property
    def folder(self) -> Path:
        return self.root / FOLDER

    @property
    def sprite_size(self) -> int:
        """Size of the sprites in pixels, larger than most things in the scenes."""
        return self.size * 3 // 4

    def styles(self, which: str) -> tuple[str, ...]:
        """The ``"seen"`` or the ``"unseen"`` styles."""
        styles = SOURCES[self.source][which == UNSEEN]
        return tuple(style for style in styles if not self.only or style in self.only)

    @property
    def all_styles(self) -> tuple[str, ...]:
        """The seen styles, then the unseen style."""
        return (*self.styles(SEEN), *self.styles(UNSEEN))

    def check(self) -> None:
        """Write the settings to the folder, or compare them with those in the folder.

        Raises:
            DatasetError: if the folder has other settings, or the source does not have a style.
        """
        strange = [style for style in self.only if style not in self.all_styles]
        if strange:
            known = ", ".join(style for part in SOURCES[self.source] for style in part)
            raise DatasetError(
                f"The source '{self.source}' has no style '{strange[0]}': choose from {known}."
            )
        if not 32 <= self.size <= 1024:
            raise DatasetError(f"The size of the scenes is {self.size} pixels: choose 32 to 1024.")
        for folder in (self.folder, self.folder / "sprites", self.folder / "scenes"):
            remove_unfinished(folder)
        path = self.folder / SETTINGS_FILE
        wanted = {"format": FORMAT} | {key: getattr(self, key) for key in BENCHMARK}
        if self.only:
            wanted["styles"] = list(self.all_styles)
        if not path.exists() or self._is_empty():
            _write_json(path, wanted)
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as e:
            raise DatasetError(f"{path} is damaged: remove {self.folder} and run again.") from e
        if found != wanted:
            raise DatasetError(
                f"{self.folder} was made with {found}, not {wanted}: remove it, or use another "
                "--root."
            )

    def _is_empty(self) -> bool:
        """Whether the folder has neither sprites nor scenes, for example because npm is missing."""
        parts = ("sprites", "scenes", "images", "labels")
        return not any(p.is_file() for part in parts for p in (self.folder / part).rglob("*"))


def prepare_emoji_scenes(
    settings: Settings,
    subsets: Sequence[str],
    *,
    scenes: int | None = None,
    workers: int = 1,
) -> None:
    """Write the sprites and the scenes of some subsets.

    Args:
        settings: settings of the data set.
        subsets: names of subsets. Those in the unseen style are skipped if the source has none.
        scenes: number of scenes of each subset; default: the benchmark's numbers.
        workers: number of processes; the result does not depend on it.

    Raises:
        DatasetError: if the art or a package is missing, or the folder has other scenes.
    """
    settings.check()
    prepare_sprites(settings, workers=workers)
    for name in subsets:
        subset = get_subset(settings.names, name)
        if not settings.styles(subset.styles):
            logger.info("%s: %s has no %s style.", name, _describe_styles(settings), subset.styles)
            continue
        _prepare_subset(settings, scene_source(settings, name), scenes or subset.scenes, workers)


def _describe_styles(settings: Settings) -> str:
    chosen = f" with the styles {', '.join(settings.only)}" if settings.only else ""
    return f"the source '{settings.source}'{chosen}"


def scene_source(settings: Settings, subset_name: str) -> SceneSource:
    """The source of the scenes of a subset. The sprites must exist."""
    subset = get_subset(settings.names, subset_name)
    return SceneSource(
        subset,
        str(settings.folder / "sprites"),
        settings.styles(subset.styles),
        settings.seed,
        SceneOptions(size=settings.size),
    )


def prepare_sprites(settings: Settings, *, workers: int = 1) -> None:
    """Render the sprites of all styles that have none yet, and write the LICENCES file.

    Raises:
        DatasetError: if the art is not available, or a drawing cannot be rendered.
    """
    folder = settings.folder / "sprites"
    styles = [*settings.all_styles, *(art.style for art in settings.pretraining_art)]
    missing = [style for style in styles if not (folder / f"{style}.npz").exists()]
    for art in _load_art(settings, missing):
        drawings = find_drawings(art, settings.names.things)
        images = run_parallel(
            partial(_render, art.style, settings.sprite_size),
            drawings,
            workers=workers,
            description=f"render {art.style}",
        )
        names = [name for name, _ in drawings]
        save_sprites(folder / f"{art.style}.npz", names, images, art.licence)
    licences = []
    for style in styles:
        size, licence = describe_sprites(folder / f"{style}.npz")
        if size != settings.sprite_size:
            raise DatasetError(
                f"{folder / style}.npz has sprites of {size} pixels, not {settings.sprite_size}: "
                "remove it."
            )
        if style in settings.all_styles:  # the others are in no image
            licences.append(licence)
    with atomic_write(settings.folder / "LICENCES", "w") as f:
        f.write("The drawings in these images, each under its own licence:\n\n")
        f.write("\n".join(licences) + "\n")


def _load_art(settings: Settings, styles: Sequence[str]) -> list[ArtSet]:
    if not styles:
        return []
    check_renderer()
    if settings.source == "pip":
        return [read_pip_art()]
    cache = settings.art or settings.folder / "art"
    # Also the packages whose code points are used for another style.
    available = [*settings.packages, *settings.pretraining_art]
    needed = {p.code_points_of or p.style for p in available if p.style in styles}
    packages = [p for p in available if p.style in needed.union(styles)]
    fetch_art(packages, cache)
    return [art for art in read_art(packages, cache) if art.style in styles]


def _render(style: str, size: int, drawing: tuple[str, str | bytes]) -> np.ndarray:
    name, content = drawing
    try:
        return render_drawing(content, size)
    except DatasetError as e:
        raise DatasetError(f"'{name}' in the style {style}: {e}") from e


def _prepare_subset(settings: Settings, source: SceneSource, count: int, workers: int) -> None:
    name, folder = source.subset.name, settings.folder
    image_dir, label_dir = (folder / part / name for part in ("images", "labels"))
    files = {f"{index:06d}.png" for index in range(count)}
    for directory in (image_dir, label_dir):
        directory.mkdir(parents=True, exist_ok=True)
        remove_unfinished(directory)
        strange = sorted(visible_files(directory) - files)
        if strange:
            raise DatasetError(
                f"{directory} has the file {strange[0]}, which is not one of the {count} scenes: "
                "remove the folder, or prepare more scenes."
            )
    path = scene_list(folder, name)
    complete = all(visible_files(d) == files for d in (image_dir, label_dir))
    if complete and path.exists():
        logger.info("%s: all %d scenes exist.", name, count)
        return
    path.unlink(missing_ok=True)
    source(0)  # loads the sprites before the processes are forked, so that they share the memory
    draw = partial(_write_scene, source, image_dir, label_dir)
    scenes = run_parallel(draw, range(count), workers=workers, description=name)
    _write_json(path, {"subset": name, "count": count, "scenes": scenes})
    logger.info("%s: %d scenes in %s.", name, count, image_dir)


def _write_scene(source: SceneSource, image_dir: Path, label_dir: Path, index: int) -> dict:
    scene = source(index)
    file = f"{index:06d}.png"
    # Every scene is drawn for the list, but writing is slow, so existing files are kept.
    for path, array in ((image_dir / file, scene.image), (label_dir / file, scene.labels)):
        if not path.exists():
            write_png(path, array)
    return {"file": file, "stuff": scene.stuff, "things": scene.things}


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as f:
        json.dump(content, f)
        f.write("\n")
