"""Register users' folders of photographs and label maps as data sets; see docs/custom_data.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.data.vocabularies import parse_vocabulary
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import IGNORE_LABEL, VocabularyError

_IMAGE_EXT = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_LABEL_EXT = (".png", ".tif", ".tiff")
_REQUIRED, _OPTIONAL = ("name", "images", "labels", "names"), ("ignore",)
# Names that this module has registered. They may be registered again.
_registered: set[str] = set()


def register_sem_seg_folder(
    name: str,
    images: str | Path,
    labels: str | Path,
    names: Vocabulary | str | Path | Sequence,
    ignore: int = IGNORE_LABEL,
) -> None:
    """Register photographs and label maps as a data set for DATASETS.TRAIN and DATASETS.TEST.

    The folders are read only when the data set is first used. A second call with the same name
    replaces the first registration.

    Args:
        name: name of the data set, e.g. "street_train".
        images: folder of photographs. Relative paths are relative to the current directory; "~" is
            the home directory.
        labels: folder of label maps with the stems of the photographs: PNG or TIFF with a single
            channel of 8 or 16 bits, with or without a palette. Values are positions in `names`,
            from 0, or `ignore`.
        names: the C categories in the order of the label values; see
            :func:`dcp_clip.data.parse_vocabulary`.
        ignore: value of the ignored pixels; not one of 0 ... C-1.

    Raises:
        ValueError: if another data set has this `name`, `ignore` is not valid, or one of `names`
            is negative.
        VocabularyError: if `names` cannot be read.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"A data set needs a name, got {name!r}.")
    if name in DatasetCatalog and name not in _registered:
        raise ValueError(
            f"Detectron2 or this project already has a data set '{name}': choose another name."
        )
    folders = []
    for what, folder in (("images", images), ("labels", labels)):
        if not isinstance(folder, str | Path) or not str(folder):
            raise ValueError(f"'{what}' of the data set '{name}' must be a folder, got {folder!r}.")
        try:
            folders.append(Path(folder).expanduser())
        except RuntimeError as error:  # there is no user of this name
            raise ValueError(
                f"'{what}' of the data set '{name}' is '{folder}', which is no home directory: "
                "write '~/' for your own."
            ) from error
    try:
        vocabulary = parse_vocabulary(names)
    except VocabularyError as e:
        raise VocabularyError(f"'names' of the data set '{name}': {e}") from e
    if not isinstance(ignore, int) or isinstance(ignore, bool) or not 0 <= ignore <= 65535:
        raise ValueError(
            f"'ignore' of the data set '{name}' is {ignore!r}: it must be a whole number from 0 to "
            "65535."
        )
    register_sem_seg(
        name,
        *folders,
        vocabulary,
        ignore_label=ignore,
        image_ext=_IMAGE_EXT,
        label_ext=_LABEL_EXT,
        advice=f"These are the folders of the data set '{name}' (see docs/custom_data.md).",
        check_labels=True,
        replace=True,
    )
    _registered.add(name)


def register_config_folders(cfg: CfgNode) -> None:
    """Register the data sets in DATASETS.SEM_SEG_FOLDERS. :func:`dcp_clip.setup_cfg` calls it.

    Each entry is a mapping whose keys are the arguments of :func:`register_sem_seg_folder`.

    Raises:
        ValueError: naming the entry and what is wrong with it.
    """
    entries = cfg.DATASETS.SEM_SEG_FOLDERS
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        where = f"DATASETS.SEM_SEG_FOLDERS[{i}]"
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"{where} is {entry!r}: it must be a mapping with the keys "
                f"{', '.join(_REQUIRED + _OPTIONAL)}."
            )
        for key in entry:
            if key not in _REQUIRED + _OPTIONAL:
                raise ValueError(
                    f"{where} has the unknown key '{key}'; known are "
                    f"{', '.join(_REQUIRED + _OPTIONAL)}."
                )
        for key in _REQUIRED:
            if entry.get(key) in (None, "", [], ()):
                raise ValueError(f"{where} lacks the key '{key}'.")
        if isinstance(entry["name"], str) and entry["name"] in seen:
            raise ValueError(f"{where}: the name '{entry['name']}' is given twice.")
        try:
            register_sem_seg_folder(**entry)
        except ValueError as e:
            raise ValueError(f"{where}: {e}") from e
        seen.add(entry["name"])
