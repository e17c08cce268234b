"""The models that the page offers, each loaded when it is first used."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcp_clip import model_zoo
from dcp_clip.modeling.large_image import LARGE_IMAGE_PIXELS
from dcp_clip.predictor import Predictor

__all__ = ["Models", "PageModel"]

_TITLES = {
    "camvid/dcp_clip_tiny.yaml": "Streets (CamVid)",
    "emoji_scenes/dcp_clip_tiny.yaml": "Drawings (EmojiScenes)",
}


@dataclass(frozen=True)
class PageModel:
    """A config with its weights.

    Attributes:
        title: name on the page and in its API.
        config_file: path or name of the config.
        weights: checkpoint; None for those of `Predictor.from_config_file`.
        opts: alternating config keys and values that override the config.
        imports: modules to import before the config is read.
    """

    title: str
    config_file: str
    weights: str | None = None
    opts: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    @classmethod
    def of_zoo(cls, name: str) -> "PageModel":
        """Return the model of a shipped config."""
        return cls(_TITLES.get(name, name.removesuffix(".yaml")), name)


class Models:
    """Predictors by title. Several threads can use it."""

    def __init__(self, models: Sequence[PageModel]) -> None:
        """
        Args:
            models: one or more; the first one is the default.
        """
        self._models = {model.title: model for model in models}
        self._predictors: dict[str, Predictor] = {}
        self._lock = threading.Lock()

    @classmethod
    def at_hand(
        cls,
        own: tuple[str, str | None, Sequence[str]] | None = None,
        imports: Sequence[str] = (),
    ) -> "Models":
        """Return the models whose weights are on this machine.

        Args:
            own: config file, weights and opts of a model that comes first, or None.
            imports: modules that its config needs.
        """
        zoo = [PageModel.of_zoo(name) for name in model_zoo.available()]
        if own is None:
            return cls(zoo)
        config_file, weights, opts = own
        title = Path(config_file).stem
        return cls([PageModel(title, config_file, weights, tuple(opts), tuple(imports)), *zoo])

    @property
    def titles(self) -> list[str]:
        return list(self._models)

    def title_of(self, config_file: str) -> str | None:
        """Return the title of the model with this config, or None if the page does not offer it."""
        titles = (t for t, model in self._models.items() if model.config_file == config_file)
        return next(titles, None)

    def get(self, title: str) -> Predictor:
        """Return the predictor of a model, and load it if necessary.

        Raises:
            ValueError: if there is no model of this title.
            FileNotFoundError, KeyError, WeightsError: see `Predictor.from_config_file`.
        """
        if title not in self._models:
            known = ", ".join(f"'{known}'" for known in self._models)
            raise ValueError(f"There is no model '{title}'; choose one of {known}.")
        with self._lock:
            if title not in self._predictors:
                model = self._models[title]
                # Every call has its own vocabulary, so the default one is never used.
                self._predictors[title] = Predictor.from_config_file(
                    model.config_file,
                    model.weights,
                    model.opts,
                    vocabulary="object",
                    imports=model.imports,
                    # Windows at full resolution would take minutes for one answer.
                    max_input_pixels=LARGE_IMAGE_PIXELS,
                )
            return self._predictors[title]
