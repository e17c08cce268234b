"""The vocabulary: the list of categories that the model can assign to a pixel.

One :class:`Vocabulary` object holds the names, synonyms and colours together. The id of a category
is its position in this object. The model itself only sees ids and text features.
"""

import difflib
import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Union

from dcp_clip.vocabulary.categories import READERS, read_categories
from dcp_clip.vocabulary.category import (
    Category,
    VocabularyError,
    check_distinct,
    clean_category,
    clean_name,
    distinct_titles,
    split_negatives,
)
from dcp_clip.vocabulary.colors import Color, check_color, default_color
from dcp_clip.vocabulary.strings import (
    is_list_file,
    refuse_existing_path,
    refuse_files,
    split_names,
)

__all__ = ["Vocabulary", "suggest"]


class Vocabulary:
    """An ordered list of C categories, immutable, hashable and cheap to pickle.

    Names are normalised: Unicode NFC, one space for each run of white space, no white space at the
    ends, no zero-width spaces. Repeated synonyms of a category are removed.

    A category whose first name begins with "!", such as "!hand", is negative: it takes part like
    any other, but its pixels are written as unknown. The mark is not a part of the name.

    Attributes:
        synonyms: C tuples of names; the first name of each is the main name of the category.
        display_names: C names for legends and tables.
        colors: C RGB colours, 0 to 255.
        negatives: ids of the negative categories, in ascending order.
    """

    __slots__ = ("synonyms", "display_names", "colors", "negatives", "_fingerprint")

    synonyms: tuple[tuple[str, ...], ...]
    display_names: tuple[str, ...]
    colors: tuple[Color, ...]
    negatives: tuple[int, ...]

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
            names: one entry for each category: a name, or a sequence of synonyms with the main name
                first. Commas are part of a name; :meth:`from_string` splits at them.
            display_names: default: the main names, made unique by
                :func:`dcp_clip.vocabulary.category.distinct_titles`.
            colors: RGB triples. None, for all or for one category, selects :func:`default_color`.
            warn_shared: whether to warn about names that several categories share.

        Raises:
            VocabularyError: if there is no category, a name is empty or not a string, two
                categories have the same set of names, or the lengths differ.
        """
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise VocabularyError(
                f"A vocabulary needs a list of names in a fixed order, got {type(names).__name__}. "
                "For a string use Vocabulary.from_string."
            )
        if len(names) == 0:
            raise VocabularyError("The vocabulary is empty. Give at least one category name.")
        synonyms = [clean_category(entry, i) for i, entry in enumerate(names)]
        synonyms, negatives = split_negatives(synonyms)
        check_distinct(synonyms, warn_shared=warn_shared)
        if display_names is None:
            display_names = distinct_titles(synonyms)
        if colors is None:
            colors = [None] * len(synonyms)
        for what, values in (("display names", display_names), ("colours", colors)):
            if not hasattr(values, "__len__"):
                raise VocabularyError(f"The {what} must be a list, got {type(values).__name__}.")
            if len(values) != len(synonyms):
                raise VocabularyError(f"{len(values)} {what} for {len(synonyms)} categories.")
        self._set(
            synonyms,
            tuple(clean_name(name, f"Display name {i}") for i, name in enumerate(display_names)),
            tuple(
                default_color(category[0]) if color is None else check_color(color, category[0])
                for color, category in zip(colors, synonyms, strict=True)
            ),
            negatives,
        )

    def _set(self, synonyms, display_names, colors, negatives, fingerprint=None) -> None:
        values = (synonyms, display_names, colors, negatives, fingerprint)
        for slot, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, slot, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"A Vocabulary is immutable ('{name}'). Create a new one.")

    __delattr__ = __setattr__  # type: ignore[assignment]

    # ---- constructors

    @classmethod
    def from_categories(cls, categories: Sequence[Category]) -> "Vocabulary":
        """Create a vocabulary from a list of categories, see :func:`load_names`."""
        return cls(
            [category.all_names for category in categories],
            colors=[category.color for category in categories],
        )

    @classmethod
    def from_string(cls, text: str) -> "Vocabulary":
        """Create a vocabulary from a string such as ``"sky; tree; car, automobile"``.

        Semicolons and line breaks separate categories, commas separate synonyms. In a string
        without semicolons and line breaks, commas separate categories: ``"sky, tree, car"``. A
        single category with synonyms therefore ends with a semicolon: ``"car, automobile;"``.
        Blank lines are skipped. :func:`dcp_clip.vocabulary.strings.split_names` lists the other
        separators that are accepted.

        Raises:
            VocabularyError: under the same conditions as in the constructor, and if the string is
                ambiguous or contains a path.
        """
        if not isinstance(text, str):
            raise VocabularyError(f"Expected a string of names, got {type(text).__name__}.")
        return cls(split_names(text))

    @classmethod
    def from_file(cls, path: str | Path) -> "Vocabulary":
        """Create a vocabulary from a file.

        :func:`dcp_clip.vocabulary.categories.read_categories` describes the formats.

        Raises:
            VocabularyError: if the file does not exist or its content is invalid; the message
                contains the file.
        """
        categories = read_categories(path)
        try:
            return cls.from_categories(categories)
        except VocabularyError as e:
            raise VocabularyError(f"{path}: {e}") from e

    @classmethod
    def from_metadata(cls, metadata: Any) -> "Vocabulary":
        """Create a vocabulary from the metadata of a data set.

        Args:
            metadata: ``MetadataCatalog.get(name)``. Its ``stuff_classes`` are the display names.
                ``stuff_synonyms`` (a list of names for each category) and ``stuff_colors`` are
                optional.

        Raises:
            VocabularyError: if the metadata has no ``stuff_classes``.
        """
        display_names = metadata.get("stuff_classes")
        if not display_names:
            raise VocabularyError(
                f"The data set '{metadata.get('name')}' has no stuff_classes in its metadata. It "
                "is not registered, or it is not a data set for semantic segmentation."
            )
        return cls(
            metadata.get("stuff_synonyms") or display_names,
            display_names=display_names,
            colors=metadata.get("stuff_colors"),
            warn_shared=False,  # The registration has already warned if necessary.
        )

    @classmethod
    def parse(cls, spec: Union["Vocabulary", str, os.PathLike, Sequence]) -> "Vocabulary":
        """Create a vocabulary from a list of names, a string or a file.

        :func:`dcp_clip.data.parse_vocabulary` also accepts the name of a data set. The first rule
        that applies is used:

        1. A ``Vocabulary`` is returned unchanged.
        2. A path object, or a string with the suffix of a list (.txt, .csv, .json, .yaml, ...), is
           a file (:meth:`from_file`). A file that does not exist is an error, not a category with
           this name.
        3. Any other string is read by :meth:`from_string`. The name of a file or folder in the
           current directory is an error.
        4. A list or tuple is passed to the constructor. Names of files in it are an error.

        Raises:
            VocabularyError: if the names or the file are invalid.
        """
        if isinstance(spec, cls):
            return spec
        if isinstance(spec, os.PathLike):
            return cls.from_file(os.fspath(spec))
        if not isinstance(spec, str):
            refuse_files(spec)
            return cls(spec)
        if is_list_file(spec, set(READERS)):
            try:
                path = Path(spec.strip()).expanduser()
            except RuntimeError as error:  # a user that does not exist
                raise VocabularyError(f"The file '{spec.strip()}' does not exist.") from error
            return cls.from_file(path)
        vocabulary = cls.from_string(spec)
        refuse_existing_path(spec)
        return vocabulary

    # ---- methods

    @property
    def unknown_id(self) -> int:
        """The value of unknown pixels in label maps: 255, or 65535 with more than 255 names."""
        return 255 if len(self) <= 255 else 65535

    def index(self, name: str) -> int:
        """Return the id of the category with this name.

        Main names and display names are searched first, then synonyms.

        Raises:
            VocabularyError: if no category or more than one category has the name.
        """
        cleaned = clean_name(name, "The requested category")
        titles = zip(self.synonyms, self.display_names, strict=True)
        found = [i for i, (names, title) in enumerate(titles) if cleaned in (names[0], title)]
        found = found or [i for i, names in enumerate(self.synonyms) if cleaned in names]
        if len(found) > 1:
            raise VocabularyError(f"'{name}' is ambiguous: the categories {found} have this name.")
        if not found:
            known = {*self.display_names, *itertools.chain.from_iterable(self.synonyms)}
            raise VocabularyError(f"'{name}' is not in the vocabulary.{suggest(name, known)}")
        return found[0]

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the names and synonyms in their order.

        It is the key of cached text features. Display names and colours do not change the text
        features, so they do not change the fingerprint. Nor do the marks of negative categories.
        """
        if self._fingerprint is None:
            # repr distinguishes ("a", "b") from ("a, b",).
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
            and self.negatives == other.negatives
        )

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __repr__(self) -> str:
        shown = ", ".join(self.display_names[:8]) + (", ..." if len(self) > 8 else "")
        return f"Vocabulary({len(self)} categories: {shown})"

    def __deepcopy__(self, memo: dict) -> "Vocabulary":
        return self

    def __reduce__(self) -> tuple:
        # Workers of the data loader send vocabularies to the model. Unpickling skips the checks,
        # because the constructor has already done them.
        values = (self.synonyms, self.display_names, self.colors, self.negatives)
        return _restore, (*values, self.fingerprint())


def _restore(synonyms, display_names, colors, negatives, fingerprint) -> Vocabulary:
    vocabulary = Vocabulary.__new__(Vocabulary)
    vocabulary._set(synonyms, display_names, colors, negatives, fingerprint)
    return vocabulary


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a hint with the known names that are similar to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""
