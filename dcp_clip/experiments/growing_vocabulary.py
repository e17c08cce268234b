"""Vocabularies of increasing size: the names of a data set, then distractors."""

from collections.abc import Iterator

from dcp_clip.vocabulary import Vocabulary

_MIN_LETTERS = 3


class StudyError(ValueError):
    """The study is not possible; the message is one sentence."""


class GrowingVocabulary:
    """Makes vocabularies of any size. Each of them is the beginning of the larger ones.

    The names of the data set come first. Then come the names of a related data set, then English
    words by their frequency, from the package wordfreq. Nothing is random.
    """

    def __init__(self, own: Vocabulary, related: Vocabulary | None = None) -> None:
        """
        Args:
            own: the C names of the data set, which keep their ids.
            related: names that are the first distractors, except those that `own` contains.
        """
        self.own = own
        self._entries = list(own.synonyms)
        listed = {name.casefold() for names in own.synonyms for name in names}
        for names in related.synonyms if related is not None else ():
            if not any(name.casefold() in listed for name in names):
                self._entries.append(names)
        self.num_listed = len(self._entries)  # names of both data sets
        self._taken = {form for names in self._entries for name in names for form in forms(name)}
        self._words: Iterator[str] | None = None

    def first(self, size: int) -> Vocabulary:
        """Make the vocabulary of the first `size` names, at least those of the data set.

        Raises:
            StudyError: if there are fewer words, or wordfreq is not installed.
        """
        if self._words is None and size > len(self._entries):
            self._words = iter(_common_words())
        while len(self._entries) < size:
            word = next(self._words, None)
            if word is None:
                raise StudyError(
                    f"--sizes {size:,}: there are only {len(self._entries):,} different names."
                )
            if len(word) >= _MIN_LETTERS and word.isalpha() and word.casefold() not in self._taken:
                self._taken.add(word.casefold())
                self._entries.append((word,))
        return Vocabulary(self._entries[: max(size, len(self.own))], warn_shared=False)


def forms(name: str) -> set[str]:
    """A name in lower case, with its possible plurals and singulars."""
    name = name.casefold()
    found = {name, f"{name}s", f"{name}es"}
    if name.endswith("y"):
        found.add(f"{name[:-1]}ies")
    for ending, singular in (("ies", "y"), ("es", ""), ("s", "")):
        if name.endswith(ending):
            found.add(name.removesuffix(ending) + singular)
    return found


def _common_words() -> list[str]:
    """All English words of wordfreq, the most frequent first."""
    try:
        from wordfreq import top_n_list
    except ImportError as error:
        raise StudyError(
            "The Python package wordfreq, which has the words for large vocabularies, is not "
            "installed: pip install -e '.[emoji]', or use smaller --sizes."
        ) from error
    return top_n_list("en", 10**6)
