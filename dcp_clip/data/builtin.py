"""The benchmarks: one table of what is known of each, and their registration in Detectron2.

Each is registered as ``<key>_sem_seg_<split>``, on the layout that its script in ``datasets/``
writes: ``<root>/<key>/images/<split>/`` and ``<root>/<key>/labels/<split>/``.
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
    """What is fixed for one benchmark.

    Attributes:
        key: its folder, and the beginning of the names of its splits.
        names: its category list, see :func:`dcp_clip.vocabulary.categories.load_names`.
        counts: official number of images of each split, None where it is not enforced.
        script: what prepares it, in ``datasets/``.
        wide: whether label maps are 16-bit TIFF with 65535 ignored, not 8-bit PNG with 255 ignored.
        num_foreground: labels from this number on, and predicted categories alike, count as one
            background category (CAT-Seg's PAS-20b); None for no such thing.
    """

    key: str
    names: str
    counts: Mapping[str, int | None]
    script: str
    wide: bool = False
    num_foreground: int | None = None

    @property
    def label_ext(self) -> str:
        """Suffix of its label maps."""
        return ".tif" if self.wide else ".png"

    @property
    def ignore_label(self) -> int:
        """Value of the ignored pixels in its label maps."""
        return IGNORE_LABEL_16 if self.wide else IGNORE_LABEL

    def dataset_name(self, split: str) -> str:
        """The name of a split in Detectron2's catalogs."""
        return f"{self.key}_sem_seg_{split}"

    def vocabulary(self) -> Vocabulary:
        """Its C categories."""
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
    # The whole ADE20K (2021_17_01). Nobody trains on it, and releases differ in training images.
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
    """Register all splits of all benchmarks; the disk is not touched before one is used.

    Importing :mod:`dcp_clip.data` does this with the default root. A second call moves the
    registration to another root.

    Args:
        root: folder of all datasets, default ``$DETECTRON2_DATASETS`` or ``datasets``.
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
