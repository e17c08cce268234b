"""Segment uploaded images, and keep the features of the latest ones."""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from dcp_clip.app.models import Models
from dcp_clip.predictor import EncodedImage, Prediction, Predictor
from dcp_clip.vocabulary import Vocabulary, VocabularyError

__all__ = ["MAX_CHARACTERS", "KeptImages", "Request", "Segmenter"]

# Length of a list of names. 20,000 usual names have about 200,000 characters.
MAX_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        image: path of the uploaded file.
        names: the vocabulary, such as "sky; tree; car, automobile".
        model: title of the model.
        unknown_below: pixels with a smaller confidence become unknown, 0 to 1.
    """

    image: str
    names: str
    model: str
    unknown_below: float = 0.0


class KeptImages:
    """The features of the latest images, in bounded memory. Several threads can use it."""

    def __init__(self, max_images: int = 16, max_bytes: int = 1_000_000_000) -> None:
        """
        Args:
            max_images: largest number of images.
            max_bytes: largest sum of features and pixels; the latest image is always kept.
        """
        self._max_images, self._max_bytes = max_images, max_bytes
        self._images: OrderedDict[tuple[str, str], EncodedImage] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, model: str, path: str, predictor: Predictor) -> EncodedImage:
        """Return the features of an image file, and encode it if it is not kept.

        Args:
            model: title of the model. Features of one model mean nothing to another one.
            path: the file; the same content under another name is the same image.
            predictor: the predictor of the model.

        Raises:
            ImageReadError: if the file cannot be read; its message has the name without the folder.
        """
        try:
            key = model, hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            raise ValueError(f"{Path(path).name} is gone; add the image again.") from error
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
                return self._images[key]
        encoded = predictor.set_image(path)
        predictor.image = None  # kept here, not there
        with self._lock:
            self._images[key] = encoded
            while len(self._images) > 1 and self._too_many():
                self._images.popitem(last=False)
        return encoded

    def _too_many(self) -> bool:
        size = sum(image.nbytes + image.image.nbytes for image in self._images.values())
        return len(self._images) > self._max_images or size > self._max_bytes


class Segmenter:
    """Answers requests. Several threads can use it."""

    def __init__(self, models: Models, kept: KeptImages | None = None) -> None:
        self.models = models
        self.kept = KeptImages() if kept is None else kept

    def __call__(self, request: Request) -> tuple[EncodedImage, Prediction]:
        """Return the image and its segmentation.

        Raises:
            ValueError: for an image, a list of names, a model or a threshold that is not valid.
        """
        vocabulary = read_names(request.names)
        predictor = self.models.get(request.model)
        try:
            image = self.kept.get(request.model, request.image, predictor)
        except ValueError as error:
            # The user knows the name of the file, but not the folder of uploads.
            name = Path(request.image).name
            raise ValueError(str(error).replace(request.image, name)) from error
        below = request.unknown_below
        return image, predictor(image, vocabulary=vocabulary, unknown_below=below)


def read_names(names: str) -> Vocabulary:
    """Read the vocabulary that a user typed. Unlike in programs, it is never the name of a file.

    Raises:
        VocabularyError: if there is no name, the text is too long, or it cannot be read.
    """
    if not names.strip():
        raise VocabularyError("Type one or more names, for example: sky; tree; car, automobile")
    if len(names) > MAX_CHARACTERS:
        raise VocabularyError(
            f"The list of names has {len(names):,} characters; write at most {MAX_CHARACTERS:,}."
        )
    return Vocabulary.from_string(names)
