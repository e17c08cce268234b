"""Records that carry their vocabulary."""

from collections.abc import Callable

from dcp_clip.vocabulary import Vocabulary


class VocabularyMapper:
    """A dataset mapper whose records tell the model which names their labels stand for.

    So one process can train on one dataset and be tested on several, and no list of names has to
    be kept in step with a dataset by hand. Picklable, as loader workers need.
    """

    def __init__(self, mapper: Callable[[dict], dict], vocabulary: Vocabulary) -> None:
        """
        Args:
            mapper: makes a record of a dataset dict, e.g. Detectron2's ``DatasetMapper``.
            vocabulary: the categories that the values of ``"sem_seg"`` count, in that order.
        """
        self.mapper = mapper
        self.vocabulary = vocabulary

    def __call__(self, dataset_dict: dict) -> dict:
        """Return the mapper's record with ``"vocabulary"`` added."""
        record = self.mapper(dataset_dict)
        record["vocabulary"] = self.vocabulary
        return record
