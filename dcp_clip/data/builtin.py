"""The table of benchmarks, and their registration in Detectron2.

A split is registered as ``<key>_sem_seg_<split>``. Its files are where the script in ``datasets/``
writes them: ``<root>/<key>/images/<split>/`` and ``<root>/<key>/labels/<split>/``. Benchmarks with
other names for the same labels share the files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
        key: prefix of the names of its splits.
        names: its category list, see :func:`dcp_clip.vocabulary.categories.load_names`.
        counts: official number of images in each split; None if it is not checked.
        script: the program in ``datasets/`` that prepares it.
        wide: True for label maps as 16-bit TIFF with 65535 for ignored pixels, False for 8-bit PNG
            with 255.
        num_foreground: labels and predicted categories from this number on count as one background
            category (CAT-Seg's PAS-20b); None if every category counts for itself.
        files_of: the benchmark whose files it uses, with the same train ids; None for its own.
    """

    key: str
    names: str
    counts: Mapping[str, int | None]
    script: str
    wide: bool = False
    num_foreground: int | None = None
    files_of: str | None = None

    @property
    def folder(self) -> str:
        """The folder of its files."""
        return self.files_of or self.key

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
        titles = None
        if categories[0].official == "background":  # its names are those of stuff, such as sky
            titles = ["background", *(category.name for category in categories[1:])]
        return Vocabulary(
            [category.all_names for category in categories],
            display_names=titles,
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
    # With background as category 0.
    Benchmark("pascal_voc_21", "pascal_voc_21", {"val": 1449}, "prepare_pascal_voc.py"),
    Benchmark(
        "pascal_context_60",
        "pascal_context_60",
        {"val": 5104},
        "prepare_pascal_context_59.py",
    ),
    # The things of COCO-Stuff; stuff is background.
    Benchmark("coco_object", "coco_object_81", {"val": 5000}, "prepare_coco_stuff.py"),
)
# The names that training-free publications use: SCLIP (arXiv 2312.01597), which NACLIP (arXiv
# 2404.08181) shares, and MaskCLIP (arXiv 2112.01071).
_PUBLISHED_NAMES = {
    "sclip": (
        "pascal_voc_20",
        "pascal_voc_21",
        "pascal_context_59",
        "pascal_context_60",
        "coco_object",
        "coco_stuff",
        "ade20k_150",
    ),
    "maskclip": ("pascal_voc_20", "pascal_context_59", "coco_stuff"),
}


def _with_published_names(table: tuple[Benchmark, ...]) -> Iterator[Benchmark]:
    by_key = {benchmark.key: benchmark for benchmark in table}
    for publication, keys in _PUBLISHED_NAMES.items():
        for benchmark in map(by_key.__getitem__, keys):
            yield replace(
                benchmark,
                key=f"{benchmark.key}_{publication}",
                names=f"{benchmark.names}_{publication}",
                counts={"val": benchmark.counts["val"]},
                files_of=benchmark.key,
            )


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {benchmark.key: benchmark for benchmark in (*_TABLE, *_with_published_names(_TABLE))}
)


def register_benchmarks(root: str | Path | None = None) -> None:
    """Register all splits of all benchmarks. Files are read only when a split is used.

    Importing :mod:`dcp_clip.data` does this with the default root. Call it again to change the
    root.

    Args:
        root: folder of all data sets; default: ``$DETECTRON2_DATASETS`` or ``datasets``.
    """
    root = Path(root or datasets_root())
    for benchmark in BENCHMARKS.values():
        folder, vocabulary = root / benchmark.folder, benchmark.vocabulary()
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
                    f"Run `python datasets/{benchmark.script} --input FOLDER --root {root}` with "
                    "the folder of the official download (see datasets/README.md), or set "
                    f"DETECTRON2_DATASETS to the folder that holds {benchmark.folder}/."
                ),
                replace=True,
            )
