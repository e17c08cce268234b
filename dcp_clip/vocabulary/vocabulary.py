"""The vocabulary: what the model may call a pixel. Names, synonyms and colours travel together.

Nothing else in the project knows names, synonyms or prompt templates; the model sees tensors, and
a category's position in one :class:`Vocabulary` object is its id. Needs no torch.
"""

import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Union

from dcp_clip.vocabulary.categories import (
    Category,
    VocabularyError,
    check_distinct,
    clean_category,
    clean_name,
    distinct_titles,
    read_categories,
    split_names,
)
from dcp_clip.vocabulary.colors import Color, check_color, default_color

__all__ = ["Vocabulary", "suggest"]


class Vocabulary:
    """An ordered list of C categories, immutable, hashable and cheap to pickle.

    Names are brought to one spelling: Unicode NFC, runs of white space made one space, none at the
    ends. A synonym repeated within a category counts once.

    Attributes:
        synonyms: C tuples of names; the first of each is the category's main name.
        display_names: C names for legends and tables.
        colors: C RGB colours, 0 ... 255.
    """

    __slots__ = ("synonyms", "display_names", "colors", "_fingerprint", "_positions")

    synonyms: tuple[tuple[str, ...], ...]
    display_names: tuple[str, ...]
    colors: tuple[Color, ...]

    def __init__(
        self,
        names: Sequence[str | Sequence[str]],
        *,
        display_names: Sequence[str] | None = None,
        colors: Sequence[Sequence[int] | None] | None = None,
        warn_shared: bool = True,
    ) -> None:
        """
        Args:
            names: one entry a category: a name, or a sequence of synonyms, the main name first.
                A comma within a name is part of it; see :meth:`from_string` for separators.
            display_names: default: the main names, see
                :func:`dcp_clip.vocabulary.categories.distinct_titles`.
            colors: RGB triples; None, or None for a category, takes :func:`default_color`.
            warn_shared: whether a name that several categories share is worth a warning.

        Raises:
            VocabularyError: if there is no category, a name is empty or no string, two categories
                have the same names, or the lengths differ.
        """
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise VocabularyError(
                f"A vocabulary needs a list of names in a fixed order, got {type(names).__name__}: "
                "for one string use Vocabulary.from_string."
            )
        if len(names) == 0:
            raise VocabularyError("The vocabulary is empty: give at least one category name.")
        synonyms = tuple(clean_category(entry, i) for i, entry in enumerate(names))
        check_distinct(synonyms, warn_shared=warn_shared)
        if display_names is None:
            display_names = distinct_titles(synonyms)
        if colors is None:
            colors = [None] * len(synonyms)
        for what, values in (("display names", display_names), ("colours", colors)):
            if len(values) != len(synonyms):
                raise VocabularyError(f"{len(values)} {what} for {len(synonyms)} categories.")
        self._set(
            synonyms,
            tuple(clean_name(name, f"Display name {i}") for i, name in enumerate(display_names)),
            tuple(
                default_color(category[0]) if color is None else check_color(color, category[0])
                for color, category in zip(colors, synonyms, strict=True)
            ),
        )

    def _set(self, synonyms, display_names, colors, fingerprint=None) -> None:
        values = (synonyms, display_names, colors, fingerprint, None)
        for slot, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, slot, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"A Vocabulary cannot be changed ('{name}'): make a new one.")

    __delattr__ = __setattr__  # type: ignore[assignment]

    # ---- ways to make one

    @classmethod
    def from_categories(cls, categories: Sequence[Category]) -> "Vocabulary":
        """Make a vocabulary of a dataset's category list, see :mod:`dcp_clip.vocabulary.categories`."""
        return cls(
            [category.all_names for category in categories],
            colors=[category.color for category in categories],
        )

    @classmethod
    def from_string(cls, text: str) -> "Vocabulary":
        """Read ``"sky; tree; car, automobile"``.

        ';' or a new line ends a category, ',' separates its synonyms. Without any ';' or new line
        commas separate categories (``"sky, tree, car"``), so end a single category that has
        synonyms with ';' (``"car, automobile;"``). Blank lines are skipped.

        Raises:
            VocabularyError: as the constructor.
        """
        if not isinstance(text, str):
            raise VocabularyError(f"Expected a string of names, got {type(text).__name__}.")
        return cls(split_names(text))

    @classmethod
    def from_file(cls, path: str | Path) -> "Vocabulary":
        """Read a .txt or .json file, see :func:`dcp_clip.vocabulary.categories.read_categories`.

        Raises:
            VocabularyError: naming the file, if it is missing or its content is at fault.
        """
        categories = read_categories(path)
        try:
            return cls.from_categories(categories)
        except VocabularyError as e:
            raise VocabularyError(f"{path}: {e}") from e

    @classmethod
    def from_metadata(cls, metadata: Any) -> "Vocabulary":
        """Take the categories of a data set from Detectron2's ``MetadataCatalog``.

        Args:
            metadata: ``MetadataCatalog.get(name)``. Reads ``stuff_classes`` and, if present,
                ``stuff_synonyms`` (a list of names for each category) and ``stuff_colors``.

        Raises:
            VocabularyError: if the metadata has no ``stuff_classes``.
        """
        display_names = metadata.get("stuff_classes")
        if not display_names:
            raise VocabularyError(
                f"The data set '{metadata.get('name')}' has no stuff_classes in its metadata: it "
                "is not registered, or not for semantic segmentation."
            )
        return cls(
            metadata.get("stuff_synonyms") or display_names,
            display_names=display_names,
            colors=metadata.get("stuff_colors"),
            warn_shared=False,  # The registration has already warned where it is useful.
        )

    @classmethod
    def parse(cls, spec: Union["Vocabulary", str, Path, Sequence]) -> "Vocabulary":
        """Make a vocabulary from a list of names, a string or a file.

        :func:`dcp_clip.data.parse_vocabulary` also accepts the name of a data set. The first rule
        that fits decides:

        1. A ``Vocabulary`` is returned unchanged.
        2. A ``Path``, or a string that ends in .txt or .json, is a file (:meth:`from_file`). A
           file that does not exist is an error, not a category of that name.
        3. Any other string is read by :meth:`from_string`.
        4. A list or tuple is passed to the constructor.

        Raises:
            VocabularyError: if the names cannot be read.
        """
        if isinstance(spec, cls):
            return spec
        if isinstance(spec, Path):
            return cls.from_file(spec)
        if not isinstance(spec, str):
            return cls(spec)
        text = spec.strip()
        if re.fullmatch(r"[^;\n]+\.(txt|json)", text, flags=re.IGNORECASE):
            return cls.from_file(text)
        return cls.from_string(spec)

    # ---- use

    def index(self, name: str) -> int:
        """Return the id of the category with this main or display name, or else this synonym.

        Raises:
            VocabularyError: if no category has the name, or several have.
        """
        if self._positions is None:
            object.__setattr__(self, "_positions", self._find_positions())
        cleaned = clean_name(name, "The name looked for")
        for table in self._positions:
            found = table.get(cleaned, [])
            if len(found) > 1:
                raise VocabularyError(f"'{name}' names the categories {found}: it is ambiguous.")
            if found:
                return found[0]
        raise VocabularyError(f"'{name}' is not in the vocabulary.{suggest(name, table)}")

    def _find_positions(self) -> tuple[dict[str, list[int]], ...]:
        main: dict[str, list[int]] = {}
        every: dict[str, list[int]] = {}
        for i, category in enumerate(self.synonyms):
            display_name = self.display_names[i]
            for name in {category[0], display_name}:
                main.setdefault(name, []).append(i)
            for name in {*category, display_name}:
                every.setdefault(name, []).append(i)
        return main, every

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the names and synonyms in their order: the key of cached text features.

        The text encoder does not see display names and colours.
        """
        if self._fingerprint is None:
            # repr keeps the borders: ("a", "b") and ("a, b",) differ.
            digest = hashlib.sha256(repr(self.synonyms).encode("utf-8", "surrogatepass"))
            object.__setattr__(self, "_fingerprint", digest.hexdigest())
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.synonyms)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self is other or (
            self.synonyms == other.synonyms
            and self.display_names == other.display_names
            and self.colors == other.colors
        )

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __repr__(self) -> str:
        shown = ", ".join(self.display_names[:8]) + (", ..." if len(self) > 8 else "")
        return f"Vocabulary({len(self)} categories: {shown})"

    def __deepcopy__(self, memo: dict) -> "Vocabulary":
        return self

    def __reduce__(self) -> tuple:
        # Records carry their vocabulary from loader workers to the model: not checked again there.
        return _restore, (self.synonyms, self.display_names, self.colors, self.fingerprint())


def _restore(synonyms, display_names, colors, fingerprint) -> Vocabulary:
    vocabulary = Vocabulary.__new__(Vocabulary)
    vocabulary._set(synonyms, display_names, colors, fingerprint)
    return vocabulary


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint with the known names that are close to ``name``; empty if none is close."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""
