"""Measure accuracy and time of a trained model against the size of the vocabulary.

    python tools/vocabulary_study.py --config-file configs/emoji_scenes/dcp_clip_tiny.yaml \\
        --dataset emoji_scenes_unseen_test --special --plot study.png

The weights are those that the repository has for the config; MODEL.WEIGHTS and a file at the end
name others. The images stay the same, the names grow:

- Fewer names than the data set has: each image gets the names that are on it, as whoever asks for
  20 names knows his picture, and others of the data set at random.
- More: the data set's names, then distractors: those of --related, then English words by frequency
  (from the package wordfreq), without what is a name or synonym of the data set or its plural. A
  pixel that gets a distractor is wrong, even where the word is right ("animal" for an otter): the
  figures are lower bounds.

Prints one Markdown table: mIoU over all names, over things and over stuff, the proposal stage's
recall (percent), its mean number of proposals K, and the median time until every pixel has its
category, with the text features in the cache. All sizes take turns on each image, so that a
disturbance of the machine hits them alike. With --special also: one name; one name and
"background"; all things and "background" in place of the stuff. How synonyms count is an option of
the config: MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING mean, max or first.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from torch import nn
from tqdm import tqdm

from dcp_clip.benchmarking.meters import seconds
from dcp_clip.config import setup_cfg
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine import Trainer
from dcp_clip.engine.checkpoint import has_weights, load_weights, shipped_weights, warn_if_untrained
from dcp_clip.evaluation import build_sem_seg_evaluator, evaluation_environment
from dcp_clip.experiments.study_names import NameSource, StudyError
from dcp_clip.experiments.study_questions import Question, Row, StudyImages, make_rows, registered
from dcp_clip.experiments.study_report import figures_of, format_table, save_plot
from dcp_clip.modeling.stages.registry import CATEGORY_PROPOSAL_REGISTRY
from dcp_clip.structures import SemSegLabels, TextFeatures
from dcp_clip.utils.arguments import format_error, positive, require_folders
from dcp_clip.utils.image_io import atomic_write
from dcp_clip.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "emoji_scenes" / "dcp_clip_tiny.yaml")
SIZES = [20, 50, 174, 611, 2000, 6000, 20000]
WARM_UPS = 2


class KeptText(nn.Module):
    """Stands in for the model's text encoder: keeps what is shared by all images, without limit."""

    def __init__(self, encoder: nn.Module, shared: Iterable[Vocabulary]) -> None:
        super().__init__()
        self.encoder = encoder
        self._kept = {v: encoder.encode_vocabulary(v) for v in shared}
        encoder.cache_dir = ""  # the questions of single images are not worth a file each

    def encode_vocabulary(self, vocabulary: Vocabulary) -> TextFeatures:
        """As `TextEncoder.encode_vocabulary`."""
        kept = self._kept.get(vocabulary)
        return self.encoder.encode_vocabulary(vocabulary) if kept is None else kept


def load(cfg: CfgNode) -> nn.Module:
    """Build the model in eval mode, with weights.

    Raises:
        StudyError: for a config without weights, or a model that this study says nothing about.
        WeightsError: for weights that do not fit.
    """
    if not has_weights(cfg):
        raise StudyError("The config names no weights: add MODEL.WEIGHTS and a file.")
    proposal = CATEGORY_PROPOSAL_REGISTRY.get(cfg.MODEL.DCP_CLIP.PROPOSAL.NAME)
    if getattr(proposal, "needs_labels", False):
        raise StudyError(
            f"MODEL.DCP_CLIP.PROPOSAL.NAME {cfg.MODEL.DCP_CLIP.PROPOSAL.NAME} proposes what is "
            "there, whatever the vocabulary: choose another."
        )
    model = build_model(cfg).eval()
    if not hasattr(model, "text_encoder"):
        raise StudyError(f"{cfg.MODEL.META_ARCHITECTURE} has no vocabulary to vary.")
    load_weights(model, cfg.MODEL.WEIGHTS)
    warn_if_untrained(model, cfg.MODEL.WEIGHTS)
    return model


def answer(model: nn.Module, record: dict, question: Question) -> tuple[float, dict]:
    """Seconds until every pixel has its category, and the output in the categories of the data set
    that is scored."""
    record = record | {"vocabulary": question.vocabulary}
    model.text_encoder.encode_vocabulary(question.vocabulary)
    outputs: list[dict] = []

    def segment() -> None:
        outputs.extend(model([record]))
        outputs[0]["sem_seg"].label_map()  # decided once, and kept

    spent = seconds(segment, model.device)
    sem_seg, ids = outputs[0]["sem_seg"], outputs[0]["proposals"]["ids"].cpu()
    label_map = question.meaning[sem_seg.label_map()]
    ids = torch.from_numpy(question.meaning)[ids]
    labels = SemSegLabels(label_map, ids, int(question.meaning.max()) + 1)
    return spent, {"sem_seg": labels, "proposals": {"ids": ids}}


@torch.no_grad()
def measure(cfg: CfgNode, model: nn.Module, images: StudyImages, rows: Sequence[Row]) -> list[dict]:
    """Ask every row of every image.

    Returns:
        the figures of each row, see :func:`study_report.figures_of`.
    """
    evaluators: list[DatasetEvaluator] = [build_sem_seg_evaluator(cfg, row.dataset) for row in rows]
    for evaluator in evaluators:
        evaluator.reset()
    times: list[list[float]] = [[] for _ in rows]
    # Any row's data set: they have the images in common, and each question brings its names.
    loader = Trainer.build_test_loader(cfg, rows[0].dataset)
    first = images.records[0]["file_name"]
    shared = [row.ask(first).vocabulary for row in rows if row.shared]
    model.text_encoder = KeptText(model.text_encoder, shared)
    with tqdm(total=len(images.records) * len(rows), unit="question") as bar:
        for i, (record,) in enumerate(loader):
            warm_ups = WARM_UPS if i == 0 else 0
            for row, _ in itertools.product(rows, range(warm_ups)):
                answer(model, record, row.ask(record["file_name"]))
            for row, evaluator, spent in zip(rows, evaluators, times):
                second, output = answer(model, record, row.ask(record["file_name"]))
                evaluator.process([record], [output])
                spent.append(second)
                bar.update()
    return [
        figures_of(row, evaluator.evaluate(), statistics.median(spent))
        for row, evaluator, spent in zip(rows, evaluators, times)
    ]


def study(args: argparse.Namespace) -> dict:
    """Everything that the command line asks for, as JSON knows it.

    Raises:
        StudyError, or what the config, the weights or the data set raise: one sentence each.
    """
    cfg = setup_cfg(args.config_file, args.opts)
    if shipped := shipped_weights(args.config_file, args.opts):
        cfg.MODEL.WEIGHTS = str(shipped)
    model = load(cfg)
    images = StudyImages(args.dataset, args.images, args.seed)
    related = dataset_vocabulary(args.related) if args.related else None
    source = NameSource(images.own, related)
    environment = evaluation_environment(cfg, model)
    sizes = sorted(set(args.sizes))
    with tempfile.TemporaryDirectory() as folder:
        with registered(images, Path(folder), args.special) as datasets:
            rows = make_rows(images, source, datasets, sizes)
            figures = measure(cfg, model, images, rows)
    return {
        "settings": {k: v for k, v in vars(args).items() if k not in ("json", "plot")},
        "images": len(images.records),
        "own_names": len(images.own),
        "environment": environment,
        "rows": figures,
    }


def format_report(result: dict) -> str:
    """The heading and the table, with what they depend on."""
    settings, environment = result["settings"], result["environment"]
    lines = [
        f"## {settings['dataset']}, {result['images']} images\n",
        f"{settings['config_file']}; weights: {environment['MODEL.WEIGHTS']}, fingerprint "
        f"{environment['weights fingerprint']}; prompts: {environment.get('prompts', '–')}; seed "
        f"{settings['seed']}; {environment['CPU']}, {environment['device']}.\n",
        format_table(result["rows"]),
    ]
    return "\n".join(lines)


def size_list(text: str) -> list[int]:
    """Read "174,611,2000"."""
    return [positive(part) for part in text.split(",")]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", default=CONFIG, metavar="YAML", help="default: EmojiScenes' own")
    add("--dataset", default="emoji_scenes_unseen_test", help="default: %(default)s")
    add("--sizes", type=size_list, default=SIZES, metavar="C,C,...", help=f"default: {SIZES}")
    add(
        "--related",
        default="emoji_scenes_all_test",
        metavar="DATASET",
        help="whose names are the first distractors; '' for none (default: %(default)s)",
    )
    add("--images", type=positive, default=200, metavar="N", help="at most (default: 200)")
    add("--seed", type=int, default=0, help="of what is chosen for an image (default: 0)")
    add("--special", action="store_true", help="also one name, and names with a background")
    add("--json", metavar="FILE", help="also write all figures there")
    add("--plot", metavar="PNG", help="also draw them against the size of the vocabulary")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the config")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report; what is wrong ends the program with one sentence."""
    args = get_parser().parse_args(argv)
    require_folders({"--json": args.json, "--plot": args.plot})
    try:
        result = study(args)
    except (AssertionError, KeyError, OSError, RuntimeError, ValueError) as error:
        # A bug's message would be no sentence about the input; those of ours are.
        if type(error) is RuntimeError:
            raise
        sys.exit(f"error: {format_error(error)}")
    print(format_report(result))
    if args.json:
        with atomic_write(args.json, "w") as file:
            json.dump(result, file, indent=1)
    if args.plot:
        save_plot(args.plot, result["rows"], result["own_names"])


if __name__ == "__main__":
    main()
