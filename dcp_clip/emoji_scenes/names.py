"""The names of EmojiScenes, in the order of their ids, and their split into base and unseen names.

``names.json`` lists the things, then the stuff. The position of a name is its id.
docs/emoji_scenes.md explains how the names were chosen.
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
    """A thing.

    Attributes:
        name: name of the category.
        synonyms: other names in the art sets; no two entries of the list share a name.
        split: its part in split 0: ``"base"`` (has training masks), ``"unseen"`` (in the small test
            vocabulary) or ``"rest"`` (only in the test with all names).
        code_points: its Unicode code points in hexadecimal without ``fe0f``; several if drawings
            were merged (the dog and the dog's face).
        icons: for art sets without code points, the names of its drawings.
    """

    name: str
    synonyms: tuple[str, ...]
    split: str
    code_points: tuple[str, ...]
    icons: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Stuff:
    """A kind of stuff. Its split is "base" or "unseen", its place "backdrop" or "ground"."""

    name: str
    synonyms: tuple[str, ...]
    split: str
    place: str


@dataclass(frozen=True)
class NameList:
    """All names. The ids number `things` first, then `stuff`."""

    things: tuple[Thing, ...]
    stuff: tuple[Stuff, ...]

    @property
    def entries(self) -> tuple[Thing | Stuff, ...]:
        """All names in the order of their ids."""
        return (*self.things, *self.stuff)

    def thing_ids(self, part: str, split: int = 0) -> tuple[int, ...]:
        """Ids of the things in the part ``"base"``, ``"unseen"`` or ``"rest"`` of a split."""
        parts = thing_parts([t.name for t in self.things], split)
        return tuple(i for i, p in enumerate(parts) if p == part)

    def stuff_ids(self, *parts: str) -> tuple[int, ...]:
        """Ids of the stuff in these parts; they are the same in every split."""
        first = len(self.things)
        return tuple(first + i for i, s in enumerate(self.stuff) if s.split in parts)

    def vocabulary(self, ids: tuple[int, ...]) -> Vocabulary:
        """The vocabulary of these ids in this order, with synonyms."""
        return Vocabulary([(e.name, *e.synonyms) for e in (self.entries[i] for i in ids)])


def thing_parts(names: list[str], split: int) -> list[str]:
    """Divide the things into base, unseen and rest.

    The names are ranked by the SHA-256 of ``"<split>/<name>"``. The first 150 are base, the next
    150 unseen. Split 0 is the benchmark. Other splits show whether a result depends on the choice
    of the base names.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(f"{split}/{name}".encode()).hexdigest())
    rank = {name: i for i, name in enumerate(order)}
    return [
        "base" if rank[n] < NUM_BASE else "unseen" if rank[n] < NUM_BASE + NUM_UNSEEN else "rest"
        for n in names
    ]


@functools.cache
def load_name_list() -> NameList:
    """Read the list of names."""
    content = json.loads(_FILE.read_text(encoding="utf-8"))
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
