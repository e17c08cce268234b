"""The names of EmojiScenes, in the order that fixes their ids, and who may be seen in training.

``names.json`` beside this file is the record: things first, then stuff, so that a name's position
is its id among all names. docs/emoji_scenes.md tells how the list came about.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from dcp_clip.vocabulary import Vocabulary

NUM_BASE = NUM_UNSEEN = 150
_FILE = Path(__file__).with_name("names.json")


@dataclass(frozen=True)
class Thing:
    """A drawn thing.

    Attributes:
        name: the name the benchmark asks for.
        synonyms: what else the art sets call it; no name is shared by two entries of the list.
        split: ``"base"`` (has masks in training), ``"unseen"`` (the small test vocabulary) or
            ``"rest"`` (unseen as well, in the test with all names only); of the split 0.
        code_points: its Unicode code points in hexadecimal without ``fe0f``, several where
            drawings were merged (the dog and the dog's face).
        icons: names of its drawings in the art sets that do not tell code points, by set.
    """

    name: str
    synonyms: tuple[str, ...]
    split: str
    code_points: tuple[str, ...]
    icons: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Stuff:
    """A texture; its split is "base" or "unseen", its place "backdrop" or "ground"."""

    name: str
    synonyms: tuple[str, ...]
    split: str
    place: str


@dataclass(frozen=True)
class NameList:
    """All names; ids count `things` first, then `stuff`."""

    things: tuple[Thing, ...]
    stuff: tuple[Stuff, ...]

    @property
    def entries(self) -> tuple[Thing | Stuff, ...]:
        """Everything, in the order of the ids."""
        return (*self.things, *self.stuff)

    def thing_ids(self, part: str, split: int = 0) -> tuple[int, ...]:
        """Ids of the things in ``"base"``, ``"unseen"`` or ``"rest"`` of a split, ascending."""
        parts = thing_parts([t.name for t in self.things], split)
        return tuple(i for i, p in enumerate(parts) if p == part)

    def stuff_ids(self, *parts: str) -> tuple[int, ...]:
        """Ids of the stuff in these parts, which are the same in every split."""
        first = len(self.things)
        return tuple(first + i for i, s in enumerate(self.stuff) if s.split in parts)

    def vocabulary(self, ids: tuple[int, ...]) -> Vocabulary:
        """The vocabulary of these ids, in their order, with synonyms."""
        return Vocabulary([(e.name, *e.synonyms) for e in (self.entries[i] for i in ids)])


def thing_parts(
    names: list[str], split: int, num_base: int = NUM_BASE, num_unseen: int = NUM_UNSEEN
) -> list[str]:
    """Deal things into base, unseen and rest, by nothing but their names and the split's number.

    The names are ranked by the SHA-256 of ``"<split>/<name>"``: the first 150 are base, the next
    150 unseen. Split 0 is the benchmark (and written out in the file); the others show whether a
    conclusion hangs on which names are base.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(f"{split}/{name}".encode()).hexdigest())
    rank = {name: i for i, name in enumerate(order)}
    return [
        "base" if rank[n] < num_base else "unseen" if rank[n] < num_base + num_unseen else "rest"
        for n in names
    ]


@functools.cache
def load_name_list(path: Path = _FILE) -> NameList:
    """Read the list; `path` is for tests."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    things = tuple(
        Thing(
            name=t["name"],
            synonyms=tuple(t["synonyms"]),
            split=t["split"],
            code_points=tuple(t["code_points"]),
            icons={style: tuple(names) for style, names in t["icons"].items()},
        )
        for t in content["things"]
    )
    stuff = tuple(
        Stuff(s["name"], tuple(s["synonyms"]), s["split"], s["place"]) for s in content["stuff"]
    )
    return NameList(things, stuff)
