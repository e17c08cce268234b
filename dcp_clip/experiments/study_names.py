"""Ever larger vocabularies for `vocabulary_study.py`: a data set's names, then distractors."""

from collections.abc import Iterator, Sequence

from dcp_clip.vocabulary import Vocabulary

_MIN_LETTERS = 3


class StudyError(ValueError):
    """A study that cannot be made; the message is one sentence."""


class NameSource:
    """Vocabularies of any size, each the beginning of the next: a data set's own names come first,
    then another data set's, then common English words by frequency.

    Nothing is drawn at random: the order is that of the lists, and of the package wordfreq (Robyn
    Speer, whose last version is 3.1.1).
    """

    def __init__(self, own: Vocabulary, related: Vocabulary | None = None) -> None:
        """
        Args:
            own: the C names of the data set, which keep their ids.
            related: whose names are the first distractors, unless `own` has one of their names.
        """
        self.own = own
        self._entries = list(own.synonyms)
        # Another list's "glasses" is no mistake for "glass"; a loose word may be.
        listed = {name.casefold() for names in own.synonyms for name in names}
        for names in related.synonyms if related is not None else ():
            if not any(name.casefold() in listed for name in names):
                self._entries.append(names)
        self.num_listed = len(self._entries)  # names of both data sets
        self._taken = {form for names in self._entries for name in names for form in forms(name)}
        self._words: Iterator[str] | None = None

    def vocabulary(self, size: int) -> Vocabulary:
        """The first `size` names, no fewer than the data set's own.

        Raises:
            StudyError: if there are not so many words, or wordfreq, which has them, is missing.
        """
        if self._words is None and size > len(self._entries):
            self._words = self._distractors(_common_words())
        while len(self._entries) < size:
            word = next(self._words, None)
            if word is None:
                raise StudyError(
                    f"--sizes {size:,}: there are {len(self._entries):,} different names; ask for "
                    "no more."
                )
            self._entries.append((word,))
        return Vocabulary(self._entries[: max(size, len(self.own))], warn_shared=False)

    def _distractors(self, words: Sequence[str]) -> Iterator[str]:
        for word in words:
            if len(word) >= _MIN_LETTERS and word.isalpha() and word.casefold() not in self._taken:
                self._taken.add(word.casefold())
                yield word


def forms(name: str) -> set[str]:
    """A name, its plural and its singular, without regard to case: words that mean the same."""
    name = name.casefold()
    found = {name, f"{name}s", f"{name}es"}
    if name.endswith("y"):
        found.add(f"{name[:-1]}ies")
    for ending, singular in (("ies", "y"), ("es", ""), ("s", "")):
        if name.endswith(ending):
            found.add(name.removesuffix(ending) + singular)
    return found


def _common_words() -> list[str]:
    """All English words of wordfreq's large list, the most frequent first."""
    try:
        from wordfreq import top_n_list
    except ImportError as error:
        raise StudyError(
            "The Python package wordfreq, whose words fill large vocabularies, is not installed: "
            "pip install -e '.[emoji]', or ask for smaller --sizes."
        ) from error
    return top_n_list("en", 10**6)
