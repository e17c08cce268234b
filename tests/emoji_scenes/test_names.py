"""The list of names: counts, order, split and unique names."""

import hashlib
import re
from collections import Counter

import pytest

from dcp_clip.emoji_scenes.art import ART, PRETRAINING_ART
from dcp_clip.emoji_scenes.names import thing_parts
from dcp_clip.emoji_scenes.textures import drawable


def test_counts_and_parts(names):
    assert (len(names.things), len(names.stuff)) == (587, 24)
    parts = [set(names.thing_ids(part)) for part in ("base", "unseen", "rest")]
    assert [len(part) for part in parts] == [150, 150, 287]
    assert set.union(*parts) == set(range(587))
    assert len(names.stuff_ids("base")) == 16 and len(names.stuff_ids("unseen")) == 8
    assert names.stuff_ids("base", "unseen") == tuple(range(587, 611))


def test_no_name_belongs_to_two_entries(names):
    """No two entries share a name or synonym, without regard to case and punctuation."""
    spelled = Counter(
        key
        for entry in names.entries
        for key in {re.sub(r"[^a-z0-9ñ]", "", n.lower()) for n in (entry.name, *entry.synonyms)}
    )
    assert [key for key, times in spelled.items() if times > 1] == []


def test_no_drawing_belongs_to_two_names(names):
    sets = [a for a in (*ART, *PRETRAINING_ART) if not (a.code_points_of or a.images)]
    for style in [art.style for art in sets]:
        icons = Counter(icon for t in names.things for icon in t.icons.get(style, ()))
        assert icons and max(icons.values()) == 1
    codes = Counter(code for t in names.things for code in t.code_points)
    assert max(codes.values()) == 1 and not any("fe0f" in code for code in codes)


def test_order_is_fixed(names):
    listed = [thing.name for thing in names.things]
    assert listed == sorted(listed)
    everything = "\n".join(entry.name for entry in names.entries)
    # Label maps contain positions, so names must not be moved, added or renamed.
    assert hashlib.sha256(everything.encode()).hexdigest()[:16] == "91da9c81a3a2188b"


def test_split_follows_from_the_names(names):
    listed = [thing.name for thing in names.things]
    assert [thing.split for thing in names.things] == thing_parts(listed, 0)
    # The order of the list does not matter.
    assert thing_parts(listed[::-1], 0)[::-1] == thing_parts(listed, 0)
    shared = set(names.thing_ids("base", 0)) & set(names.thing_ids("base", 1))
    assert len(names.thing_ids("base", 1)) == 150 and len(shared) < 75


def test_all_stuff_can_be_drawn(names):
    assert {stuff.name for stuff in names.stuff} == drawable()
    for place in ("backdrop", "ground"):
        for split in ("base", "unseen"):
            assert sum((s.place, s.split) == (place, split) for s in names.stuff) >= 4


@pytest.mark.parametrize("part", ["base", "unseen"])
def test_vocabulary_has_names_and_synonyms(names, part):
    ids = (*names.thing_ids(part), *names.stuff_ids("base"))
    vocabulary = names.vocabulary(ids)
    assert len(vocabulary) == 166
    for synonyms, i in zip(vocabulary.synonyms, ids):
        assert synonyms == (names.entries[i].name, *names.entries[i].synonyms)
