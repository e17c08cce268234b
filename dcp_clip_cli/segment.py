"""Segment photographs with any list of category names.

    dcp-clip segment --input photos/ --vocabulary "sky; tree; car, automobile"

In a clone of the repository, `python demo/demo.py` is the same program.

For each image it writes <name>_overlay.jpg (coloured regions with a legend) and
<name>_labels.png (category ids, shown in the vocabulary's colours). It also adds one line to
results.jsonl: the file, its size, the categories with their share of the area and score, and the
time of the model in milliseconds. Sub-folders of the input are kept.

--format writes other files: confidence (grey PNG, white is certain), coco, polygons, labelme and
label_studio (JSON). With coco, one file coco.json describes all images. Labels alone are fastest:

    dcp-clip segment --input photos/ --vocabulary "cup; plate" --only labels
    dcp-clip segment --input photos/ --vocabulary 'cup; !hand; !table' --unknown-below 0.4 \\
        --format overlay coco

Pixels that are less certain than --unknown-below, and pixels of names with the mark !, become
unknown: 255 in the label map, or 65535 with more than 255 names.

A run can be stopped at any moment, also by kill -9. The same command continues it: images that have
results are skipped, and images that failed are tried again. The settings of a run are in run.json.
A folder with the results of other settings is refused; --overwrite replaces them.

An image that fails is reported, listed in failures.jsonl and skipped. The exit status is then 1.
After Ctrl-C it is 130, after SIGTERM 143.

A video gives an overlay video, and a label map and a line for each frame (docs/video.md):

    dcp-clip segment --input clip.mp4 --every 5 --smoothing 0.6

A GeoTIFF gives a GeoTIFF of labels, and polygons with their area (docs/rasters.md):

    dcp-clip segment --input scene.tif --bands 4,3,2 --format labels polygons overlay
"""

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcp_clip_cli.arguments import (
    BACKENDS,
    DEFAULT_CONFIG,
    add_model_arguments,
    check_backend,
    input_name,
    output_path,
    positive,
)

# Those of dcp_clip.folder_run.result_files, which imports PyTorch.
FORMATS = ("overlay", "labels", "confidence", "coco", "polygons", "labelme", "label_studio")


def numbers(text: str) -> list[int]:
    """Parse "4,3,2"; numbers count from 1."""
    try:
        parsed = [int(number) for number in text.split(",")]
    except ValueError:
        parsed = []
    if len(parsed) not in (1, 3) or min(parsed) < 1:
        message = f"'{text}' is neither one band nor three, such as 3,2,1 (they count from 1)"
        raise argparse.ArgumentTypeError(message)
    return parsed


def get_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the arguments; `prog` is the name of the program in its usage line."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    input_help = "image files, folders, or quoted glob patterns"
    add("--input", nargs="+", type=input_name, default=[], help=input_help)
    samples_help = "use the sample photograph of scikit-learn"
    add("--samples", action="store_true", help=samples_help)
    add(
        "--vocabulary",
        help="a string such as 'sky; tree; car, automobile' (semicolons between categories, commas "
        "between synonyms; without semicolons, commas separate categories), a file of names, "
        "or the name of a data set; default: the categories of the training set",
    )
    output_help = "folder for the results (default: %(default)s)"
    add("--output", type=output_path, default="output/demo", help=output_help)
    add(
        *("--format", "--only"),
        dest="formats",
        nargs="+",
        choices=FORMATS,
        default=list(FORMATS[:2]),
        metavar="FORMAT",
        help=f"files to write for each image: {', '.join(FORMATS)}; default: overlay labels",
    )
    unknown_help = "pixels with a smaller confidence become unknown; sets TEST.UNKNOWN_BELOW"
    add("--unknown-below", type=float, metavar="P", help=unknown_help + " (0 to 1)")
    pixels_help = (
        "shrink images with more pixels; default: images above 16 million pixels are segmented in "
        "windows, but frames of videos and images for --backend onnx or openvino are shrunk"
    )
    add("--max-pixels", type=positive, metavar="N", help=pixels_help)
    bands_help = (
        "read the input as rasters, with these bands as red, green and blue (docs/rasters.md)"
    )
    add("--bands", type=numbers, metavar="R,G,B", help=bands_help)
    range_help = "the values of a raster that become black and white; default: percentiles 2 and 98"
    add("--range", nargs=2, type=float, metavar=("LOW", "HIGH"), help=range_help)
    add("--every", type=positive, default=1, metavar="N", help="use every N-th frame of a video")
    smoothing_help = "average the logits of a video over time: the weight of the frames before "
    add("--smoothing", type=float, metavar="W", help=smoothing_help + "(0 to 1)")
    overwrite_help = "remove the results of a run with other settings from the output folder"
    add("--overwrite", action="store_true", help=overwrite_help)
    add_model_arguments(parser)
    return parser


def make_predictor(args: argparse.Namespace) -> Any:
    """Return the predictor of the arguments, and print its vocabulary."""
    from dcp_clip.folder_run.onnx_predictor import RunOnnxPredictor
    from dcp_clip.predictor import Predictor

    if args.backend != "torch":
        predictor = RunOnnxPredictor(
            args.weights,
            args.vocabulary,
            backend=BACKENDS[args.backend],
            unknown_below=args.unknown_below,
        )
    else:
        opts = list(args.opts)
        if args.unknown_below is not None:
            opts = ["TEST.UNKNOWN_BELOW", str(args.unknown_below), *opts]
        predictor = Predictor.from_config_file(
            args.config_file, args.weights, opts, args.vocabulary, imports=args.imports
        )
    if args.max_pixels is not None:
        predictor.max_input_pixels = args.max_pixels
    names = predictor.vocabulary.display_names
    count = f"{len(names)} {'category' if len(names) == 1 else 'categories'}"
    print(f"Vocabulary: {count}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}")
    if args.config_file == DEFAULT_CONFIG and not args.weights and not args.opts:
        _note_new_names(predictor.vocabulary)
    return predictor


def _note_new_names(vocabulary: Any) -> None:
    """Print a note if the default model has not learned the names."""
    from dcp_clip.data.vocabularies import dataset_vocabulary

    known = set(dataset_vocabulary("camvid_sem_seg_train").display_names)
    new = [names[0] for names in vocabulary.synonyms if known.isdisjoint(names)]
    if new:
        print(
            f"Note: the default model has learned {len(known)} categories of streets, and not "
            f"'{new[0]}'. Names that it has not learned work less well. --config-file chooses "
            "another model: see 'Label your photographs' in README.md."
        )


def _kind_of_input(args: argparse.Namespace, images: Iterable[Path], samples: list[Path]) -> str:
    """Return "image", "video" or "raster", the kind of all files.

    Raises:
        ValueError: for files of several kinds, or an option that has no effect on this kind.
    """
    from dcp_clip.geo.raster import is_geotiff
    from dcp_clip.utils.images.listing import IMAGE_EXTENSIONS
    from dcp_clip.video.frames import is_video

    others = IMAGE_EXTENSIONS - {".tif", ".tiff"}  # a folder can have many, which are not opened

    def kind_of(path: Path) -> str:
        if path in samples:
            return "image"
        if is_video(path):
            return "video"
        may_be_raster = path.suffix.lower() not in others
        return "raster" if args.bands or (may_be_raster and is_geotiff(path)) else "image"

    first: dict[str, Path] = {}  # by kind
    for path in images:
        first.setdefault(kind_of(path), path)
    if len(first) > 1:
        files = " and ".join(
            f"{path} is {'an' if kind == 'image' else 'a'} {kind}"
            for kind, path in sorted(first.items())
        )
        raise ValueError(f"Segment videos, rasters and images in separate runs: {files}.")
    (kind,) = first
    for name, is_set, known in (
        ("--bands", args.bands is not None, {"raster"}),
        ("--range", args.range is not None, {"raster"}),
        ("--every", args.every != 1, {"video"}),
        ("--smoothing", args.smoothing is not None, {"video"}),
        ("--max-pixels", args.max_pixels is not None, {"image", "video"}),
    ):
        if is_set and kind not in known:
            raise ValueError(
                f"{name} has no effect on {kind}s, only on {'s and '.join(sorted(known))}s: remove "
                "it."
            )
    return kind


def _run_other(args: argparse.Namespace, kind: str, images: Mapping[Path, Path]) -> int:
    """Segment videos or rasters, and return the exit status of `run`."""
    if args.backend != "torch" and (kind == "raster" or args.smoothing is not None):
        raise ValueError("Rasters and --smoothing need --backend torch.")
    if kind == "video":
        from dcp_clip_cli.segment_video import segment_videos as segment
    else:
        from dcp_clip_cli.segment_raster import segment_rasters as segment
    return segment(args, images, lambda: make_predictor(args))


def run(args: argparse.Namespace) -> int:
    """Segment the images, and return the exit status.

    Returns:
        0 if all images have results, 1 if images failed, 130 after Ctrl-C, 143 after SIGTERM.
    """
    # Late imports, so that --help is fast.
    from dcp_clip import __version__
    from dcp_clip.folder_run.coco_file import write_coco_file
    from dcp_clip.folder_run.output_folder import COCO_FILE, RunFolder
    from dcp_clip.folder_run.pipeline import run_settings, segment_files
    from dcp_clip.folder_run.plan import find_images, plan_jobs
    from dcp_clip.folder_run.result_files import SUFFIXES, result_files
    from dcp_clip.utils.images.samples import find_photographs

    output, formats = args.output, args.formats
    samples = find_photographs() if args.samples else []
    if args.samples and not samples:
        raise FileNotFoundError(
            "there is no sample photograph: install it with pip install scikit-learn"
        )
    images = find_images([*args.input, *map(str, samples)], output)
    kind = _kind_of_input(args, images, samples)
    if kind != "image":
        return _run_other(args, kind, images)
    # Lock the folder first: an error about it should not come after a long download of weights.
    with RunFolder(output) as folder:
        predictor = make_predictor(args)
        folder.open(run_settings(predictor, images, __version__, formats), args.overwrite)
        jobs = plan_jobs(images, output, folder.finished, [SUFFIXES[name] for name in formats])
        files = [p for job in jobs for p in result_files(output, job.stem, formats).values()]
        folder.begin(files + [output / COCO_FILE] * ("coco" in formats))
        skipped = len(images) - len(jobs)
        if skipped:
            print(f"Skipping {skipped} of {len(images)} images, which have results in {output}.")
        if folder.repeated:
            count = "1 result" if folder.repeated == 1 else f"{folder.repeated} results"
            print(
                f"Removed {count} in {output}, because the line is incomplete, a picture is "
                "missing, or the image has changed."
            )
        start = time.perf_counter()
        lines = folder.results, folder.failures
        summary = segment_files(predictor, jobs, output, *lines, formats)
        if "coco" in formats:
            write_coco_file(folder, predictor.vocabulary)
    seconds = time.perf_counter() - start
    notes = [f"{summary.done} of {len(jobs)} images in {seconds:.1f} s"]
    notes += [f"{summary.done / seconds:.2f} images/s"] if summary.done else []
    notes += [f"{skipped} skipped"] if skipped else []
    notes += [f"{len(summary.failed)} failed"] if summary.failed else []
    notes += ["interrupted"] if summary.interrupted else []
    print(f"{', '.join(notes)}; results in {output}")
    return 128 + summary.signal if summary.signal else int(bool(summary.failed))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the program, and return its exit status."""
    parser = get_parser(prog)
    args = parser.parse_args(argv)
    if not (args.input or args.samples):
        parser.error("give --input or --samples")
    check_backend(parser, args)
    from dcp_clip.utils.arguments import format_error

    try:
        return run(args)
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {format_error(error)}")
