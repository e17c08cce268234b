"""The subsets of EmojiScenes: names, styles, number of scenes, and the random choices of a scene.

=============  =================  =========  ===========================  ============
subset         things             styles     stuff                        vocabulary
=============  =================  =========  ===========================  ============
base_train     base               seen       base                         names in use
base           base               seen       base and unseen              names in use
unseen         unseen             seen       base and unseen              names in use
unseen_style   unseen             the other  base and unseen              names in use
all            base, unseen,      the other  base and unseen              all names
               rest
=============  =================  =========  ===========================  ============
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcp_clip.emoji_scenes.names import NameList
from dcp_clip.emoji_scenes.scenes import Scene, SceneOptions, ThingChoice, compose_scene
from dcp_clip.emoji_scenes.sprites import load_sprites

SEEN, UNSEEN = "seen", "unseen"
# Number of scenes. "all" has more, so that each of its names occurs several times.
SCENE_COUNTS = {
    "base_train": 8000,
    "base_val": 500,
    "base_test": 1000,
    "unseen_val": 500,
    "unseen_test": 1000,
    "unseen_style_val": 500,
    "unseen_style_test": 1000,
    "all_val": 1000,
    "all_test": 2000,
}
# The registered base splits: the benchmark, and a second one to verify conclusions.
SPLITS = (0, 1)


@dataclass(frozen=True)
class Subset:
    """A subset of the benchmark.

    Attributes:
        name: e.g. ``"unseen_test"``, or ``"split1_unseen_test"``.
        styles: ``"seen"`` or ``"unseen"``.
        things: (id, name) of the things that can occur.
        stuff: (id, name, place) of the stuff that can occur.
        vocabulary: ids of all names; label maps contain positions in this tuple.
        scenes: number of scenes.
    """

    name: str
    styles: str
    things: tuple[tuple[int, str], ...]
    stuff: tuple[tuple[int, str, str], ...]
    vocabulary: tuple[int, ...]
    scenes: int

    @property
    def label_type(self) -> np.dtype:
        """uint8 if it also has room for the ignored value, else uint16."""
        return np.dtype(np.uint8 if len(self.vocabulary) < 256 else np.uint16)

    @property
    def ignore_label(self) -> int:
        """The value of ignored pixels; no pixel of the scenes has it."""
        return int(np.iinfo(self.label_type).max)


def subset_name(plain: str, split: int = 0) -> str:
    """The name of a subset of :data:`SCENE_COUNTS` in a base split."""
    return f"split{split}_{plain}" if split else plain


def subset_names(split: int = 0) -> tuple[str, ...]:
    """The subsets of a base split, in the order of :data:`SCENE_COUNTS`."""
    return tuple(subset_name(plain, split) for plain in SCENE_COUNTS)


def get_subset(names: NameList, name: str) -> Subset:
    """Look up a subset.

    Raises:
        KeyError: if there is no such subset.
    """
    split, plain = 0, name
    if name.startswith("split"):
        number, plain = name.removeprefix("split").split("_", 1)
        split = int(number)
    kind, part = plain.rsplit("_", 1)
    scenes = SCENE_COUNTS[plain]
    if kind == "all":
        things = tuple(range(len(names.things)))
    else:
        things = names.thing_ids("base" if kind == "base" else "unseen", split)
    stuff = names.stuff_ids("base") if part == "train" else names.stuff_ids("base", "unseen")
    entries, first = names.entries, len(names.things)
    return Subset(
        name=name,
        styles=UNSEEN if kind in ("unseen_style", "all") else SEEN,
        things=tuple((i, entries[i].name) for i in things),
        stuff=tuple((i, entries[i].name, names.stuff[i - first].place) for i in stuff),
        vocabulary=(*things, *stuff),
        scenes=scenes,
    )


@dataclass(frozen=True)
class SceneSource:
    """Draws the scenes of a subset: ``source(index)`` draws one. It is cheap to pickle.

    Attributes:
        subset: the subset.
        sprites: folder of the sprites.
        styles: the styles to draw things in.
        seed: seed of the data set.
        options: parameters of the scenes.
    """

    subset: Subset
    sprites: str
    styles: tuple[str, ...]
    seed: int = 0
    options: SceneOptions = SceneOptions()

    def __call__(self, index: int) -> Scene:
        """Draw the scene `index`. Its labels are positions in the subset's vocabulary.

        Raises:
            DatasetError: if the sprites are missing.
        """
        rng = np.random.default_rng([self.seed, self._code, 0, index])
        low, high = self.options.things
        count = int(rng.integers(low, high + 1))
        things = [self._choose(rng, *thing) for thing in self._deal(index, high)]
        scene = compose_scene(
            rng,
            [thing for thing in things if thing is not None][:count],
            [(i, name) for i, name, place in self.subset.stuff if place == "backdrop"],
            [(i, name) for i, name, place in self.subset.stuff if place == "ground"],
            self.options,
        )
        return self._to_vocabulary(scene)

    @property
    def _code(self) -> int:
        """A number for the seed, different for each subset."""
        return int.from_bytes(hashlib.sha256(self.subset.name.encode()).digest()[:4], "big")

    def _deal(self, index: int, count: int) -> Iterator[tuple[int, str]]:
        """Take `count` things from shuffled lists, so that all things occur equally often."""
        pool, dealt = self.subset.things, set()
        for position in range(index * count, (index + 1) * count):
            deck, place = divmod(position, len(pool))
            thing = pool[_shuffle(self.seed, self._code, deck, len(pool))[place]]
            if thing not in dealt:  # it can repeat where two lists meet
                dealt.add(thing)
                yield thing

    def _choose(self, rng: np.random.Generator, thing: int, name: str) -> ThingChoice | None:
        bank = _bank(self.sprites, self.styles)
        drawn_in = [style for style in self.styles if (style, name) in bank]
        if not drawn_in:
            return None
        style = drawn_in[int(rng.integers(len(drawn_in)))]
        drawings = bank[style, name]
        return ThingChoice(thing, style, drawings[int(rng.integers(len(drawings)))])

    def _to_vocabulary(self, scene: Scene) -> Scene:
        position = {i: k for k, i in enumerate(self.subset.vocabulary)}
        table = np.zeros(max(position) + 1, self.subset.label_type)
        table[list(position)] = list(position.values())
        scene.labels = table[scene.labels]
        scene.stuff = [position[i] for i in scene.stuff]
        for thing in scene.things:
            thing["id"] = position[thing["id"]]
        return scene


@functools.lru_cache(maxsize=64)
def _shuffle(seed: int, code: int, deck: int, size: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, code, 1, deck]).permutation(size).tolist())


@functools.lru_cache(maxsize=4)
def _bank(folder: str, styles: tuple[str, ...]) -> dict[tuple[str, str], np.ndarray]:
    return load_sprites(Path(folder), styles)
