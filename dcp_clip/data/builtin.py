"""The table of benchmarks, and their registration in Detectron2.

A split is registered as ``<key>_sem_seg_<split>``. Its files are where the script in ``datasets/``
writes them: ``<root>/<key>/images/<split>/`` and ``<root>/<key>/labels/<split>/``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dcp_clip.data.catalog import datasets_root, register_sem_seg
from dcp_clip.data.label_maps import IGNORE_LABEL_16
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import IGNORE_LABEL, load_names


@dataclass(frozen=True)
class Benchmark:
    """The fixed properties of one benchmark.

    Attributes:
        key: name of its folder, and prefix of the names of its splits.
        names: its category list, see :func:`dcp_clip.vocabulary.categories.load_names`.
        counts: official number of images in each split; None if it is not checked.
        script: the program in ``datasets/`` that prepares it.
        wide: True for label maps as 16-bit TIFF with 65535 for ignored pixels, False for 8-bit PNG
            with 255.
        num_foreground: labels and predicted categories from this number on count as one background
            category (CAT-Seg's PAS-20b); None if every category counts for itself.
    """

    key: str
    names: str
    counts: Mapping[str, int | None]
    script: str
    wide: bool = False
    num_foreground: int | None = None

    @property
    def label_ext(self) -> str:
        """The suffix of the label maps."""
        return ".tif" if self.wide else ".png"

    @property
    def ignore_label(self) -> int:
        """The value of ignored pixels in the label maps."""
        return IGNORE_LABEL_16 if self.wide else IGNORE_LABEL

    def dataset_name(self, split: str) -> str:
        """Return the name of a split in Detectron2's catalogs."""
        return f"{self.key}_sem_seg_{split}"

    def vocabulary(self) -> Vocabulary:
        """Return the C categories."""
        categories = load_names(self.names)
        return Vocabulary(
            [category.all_names for category in categories],
            colors=[category.color for category in categories],
            warn_shared=False,
        )


_TABLE = (
    # Brostow et al., ECCV 2008, in SegNet's form.
    Benchmark("camvid", "camvid_11", {"train": 367, "val": 101, "test": 233}, "prepare_camvid.py"),
    # COCO-Stuff 164k, arXiv 1612.03716.
    Benchmark(
        "coco_stuff", "coco_stuff_171", {"train": 118287, "val": 5000}, "prepare_coco_stuff.py"
    ),
    # ADE20K's scene parsing challenge, arXiv 1608.05442.
    Benchmark("ade20k_150", "ade20k_150", {"train": 20210, "val": 2000}, "prepare_ade20k_150.py"),
    # The full ADE20K (2021_17_01). Its releases differ in the number of training images.
    Benchmark(
        "ade20k_847",
        "ade20k_847",
        {"train": None, "val": 2000},
        "prepare_ade20k_847.py",
        wide=True,
    ),
    # Mottaghi et al., CVPR 2014.
    Benchmark(
        "pascal_context_59",
        "pascal_context_59",
        {"val": 5104},
        "prepare_pascal_context_59.py",
    ),
    Benchmark(
        "pascal_context_459",
        "pascal_context_459",
        {"val": 5104},
        "prepare_pascal_context_459.py",
        wide=True,
    ),
    # Everingham et al., IJCV 2010. "20b" is CAT-Seg's (arXiv 2303.11797): label 20 is background.
    Benchmark("pascal_voc_20", "pascal_voc_20", {"val": 1449}, "prepare_pascal_voc.py"),
    Benchmark(
        "pascal_voc_20b",
        "pascal_voc_20b",
        {"val": 1449},
        "prepare_pascal_voc.py",
        num_foreground=20,
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({b.key: b for b in _TABLE})


def register_benchmarks(root: str | Path | None = None) -> None:
    """Register all splits of all benchmarks. Files are read only when a split is used.

    Importing :mod:`dcp_clip.data` does this with the default root. Call it again to change the
    root.

    Args:
        root: folder of all data sets; default: ``$DETECTRON2_DATASETS`` or ``datasets``.
    """
    root = Path(root or datasets_root())
    for benchmark in BENCHMARKS.values():
        folder, vocabulary = root / benchmark.key, benchmark.vocabulary()
        for split, count in benchmark.counts.items():
            register_sem_seg(
                benchmark.dataset_name(split),
                folder / "images" / split,
                folder / "labels" / split,
                vocabulary,
                ignore_label=benchmark.ignore_label,
                expected_count=count,
                label_ext=benchmark.label_ext,
                num_foreground=benchmark.num_foreground,
                advice=(
                    f"Run `python datasets/{benchmark.script} --root {root}` with the official "
                    "download (see datasets/README.md), or set DETECTRON2_DATASETS to the folder "
                    f"that holds {benchmark.key}/."
                ),
                replace=True,
            )
