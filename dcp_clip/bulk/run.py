"""Run the stages of a bulk run on a cluster with Ray Data."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from tqdm import tqdm

import dcp_clip.bulk.stages as stages
from dcp_clip.bulk.inputs import find_inputs, index_shard
from dcp_clip.bulk.label_form import check_label_form
from dcp_clip.bulk.onnx_model import RunOnnxModel
from dcp_clip.bulk.partitions import BulkFolder, BulkFolderError
from dcp_clip.data.augmentation import ResizeForTest
from dcp_clip.folder_run.onnx_predictor import RunOnnxPredictor
from dcp_clip.folder_run.pipeline import run_settings
from dcp_clip.predictor import Predictor
from dcp_clip.runtime.resizing import Resizing
from dcp_clip.structures import TextFeatures
from dcp_clip.utils.processors import usable_cpus

__all__ = ["BulkOptions", "ClusterError", "connect", "segment_many"]

# Logical CPUs beyond those of the actors. Tasks that read and write mostly wait for a disk.
_CPUS_TO_READ_AND_WRITE = 2
_ONE_PARTITION = {"batch_size": 1, "batch_format": "pyarrow"}


class ClusterError(RuntimeError):
    """The cluster cannot run the job. The message is one sentence."""


@dataclass(frozen=True)
class BulkOptions:
    """How to run; the results do not depend on it, except on `labels` and `partition_size`.

    Attributes:
        actors: smallest and largest number of actors, each with a copy of the model.
        gpus: GPUs of an actor, possibly a fraction; 0 for the CPU.
        cpus: CPUs of an actor, and threads of PyTorch.
        batch_size: number of images of equal size in a forward pass.
        partition_size: number of images in a partition.
        labels: "rle" or "png", the form of the label maps.
        retry_errors: segment partitions with errors again.
    """

    actors: tuple[int, int] = (1, 1)
    gpus: float = 0
    cpus: float = 1
    batch_size: int = 1
    partition_size: int = 256
    labels: str = "rle"
    retry_errors: bool = False


def connect(address: str | None, options: BulkOptions) -> None:
    """Connect to a cluster, or start Ray on this machine.

    Args:
        address: that of `ray.init`, such as "auto"; None: start Ray here.
        options: of the run that follows.

    Raises:
        ClusterError: if there is no cluster, or it is too small for the options.
    """
    if not ray.is_initialized():
        start = {"address": "local", "num_cpus": usable_cpus() + _CPUS_TO_READ_AND_WRITE}
        try:
            ray.init(**({"address": address} if address else start), logging_level=logging.WARNING)
        except (ConnectionError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ClusterError(f"cannot connect to --address {address}: {reason}") from error
    has = ray.cluster_resources()
    needs = {
        "CPU": options.actors[0] * options.cpus + 1,
        "GPU": options.actors[0] * options.gpus,
    }
    for kind, need in needs.items():
        if need > has.get(kind, 0):
            reader = " and a task that reads images" if kind == "CPU" else ""
            raise ClusterError(
                f"{options.actors[0]} actors{reader} need {need:g} {kind}s, but the cluster has "
                f"{has.get(kind, 0):g}; give fewer --actors or fewer {kind}s for each"
            )


def segment_many(
    predictor: Predictor | RunOnnxPredictor,
    inputs: Sequence[str],
    output: str,
    version: str,
    options: BulkOptions = BulkOptions(),
) -> dict[str, int]:
    """Segment images on the cluster of `connect`, and write partitions into a folder.

    The folder can hold a part of the results of the same run: finished partitions are skipped.

    Args:
        predictor: the model on the CPU, or an exported model; and its vocabulary.
        inputs: see `find_inputs`.
        output: path or URL of the folder, which all workers can write to.
        version: version of the program.
        options: how to run.

    Returns:
        "images", "errors" and "partitions" of the whole run, and "skipped", the number of
        partitions that were finished before.

    Raises:
        InputError, StorageError, ImageReadError: see `find_inputs`.
        BulkFolderError: if the folder has the results of another run, or cannot be written to.
            Finished partitions are kept.
        WriteError: if the list of images cannot be written.
        ValueError: see `check_label_form`.
    """
    check_label_form(options.labels, len(predictor.vocabulary))
    folder = BulkFolder(output)
    settings = run_settings(predictor, (), version) | {"labels": options.labels}
    folder.open(find_inputs(inputs, _index_shards), options.partition_size, settings)
    finished = folder.finished()
    if options.retry_errors and finished:
        finished -= folder.with_errors(finished)
    waiting = [number for number in range(folder.partitions) if number not in finished]
    if waiting:
        _run(predictor, folder, waiting, settings, options)
    return folder.finish() | {"skipped": len(finished)}


def _index_shards(urls: list[str]) -> list[pa.Table]:
    index = ray.remote(index_shard)
    try:
        return ray.get([index.remote(url) for url in urls])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _run(
    predictor: Predictor | RunOnnxPredictor,
    folder: BulkFolder,
    waiting: list[int],
    settings: dict[str, Any],
    options: BulkOptions,
) -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False  # those of this module count images
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    names = ("weights fingerprint", "vocabulary fingerprint")
    # Tasks that read and write reserve no CPU, but are limited to those that actors leave. If a
    # machine is lost, its actors may reserve all CPUs of the others, and must not wait for ever.
    free = ray.cluster_resources()["CPU"] - options.actors[0] * options.cpus
    tasks = TaskPoolStrategy(size=max(1, int(free)))
    model, arguments, resizing = _model_stage(predictor, options)
    rows = (
        ray.data.from_items([{"partition": n} for n in waiting], override_num_blocks=len(waiting))
        .map_batches(
            stages.read_partition,
            fn_kwargs={
                "folder": folder,
                "resizing": resizing,
                "max_pixels": predictor.max_input_pixels,
            },
            compute=tasks,
            num_cpus=0,
            **_ONE_PARTITION,
        )
        .map_batches(
            model,
            fn_constructor_kwargs=arguments,
            compute=ActorPoolStrategy(min_size=options.actors[0], max_size=options.actors[1]),
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            **_ONE_PARTITION,
        )
        .map_batches(
            stages.write_partition,
            fn_kwargs={
                "folder": folder,
                "vocabulary": predictor.vocabulary,
                "labels": options.labels,
                "fingerprints": {name.replace(" ", "_"): settings[name] for name in names},
            },
            compute=tasks,
            num_cpus=0,
            **_ONE_PARTITION,
        )
    )
    bar = tqdm(
        total=folder.images,
        initial=folder.images - sum(map(folder.length, waiting)),
        unit=" images",
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{rate_noinv_fmt}, {remaining} left"
        "{postfix}]",
    )
    errors = 0
    with bar:
        for row in rows.iter_rows():
            if row["failure"]:
                raise BulkFolderError(
                    f"{row['failure'].rstrip('.')}; finished partitions are kept, so run the same "
                    "command again when the folder can be written to"
                )
            errors += row["errors"]
            bar.set_postfix_str(f", {errors} errors" if errors else "", refresh=False)
            bar.update(row["images"])


def _model_stage(
    predictor: Predictor | RunOnnxPredictor, options: BulkOptions
) -> tuple[type[stages.RunModel], dict[str, Any], ResizeForTest | Resizing]:
    """Return the class of the actors, its arguments, and how the images are resized."""
    arguments: dict[str, Any] = {"threads": max(1, int(options.cpus))}
    if isinstance(predictor, RunOnnxPredictor):
        arguments |= {
            "folder": str(predictor.folder.path.absolute()),
            "vocabulary": predictor.vocabulary,
            "backend": predictor.backend,
        }
        return RunOnnxModel, arguments, predictor.resizing
    arguments |= {
        "shared": ray.put(_with_features(predictor)),  # each machine gets it once
        "device": "cuda" if options.gpus else "cpu",
        "batch_size": options.batch_size,
    }
    return stages.RunModel, arguments, ResizeForTest(predictor.cfg)


def _with_features(predictor: Predictor) -> tuple[Predictor, TextFeatures | None]:
    encoder = getattr(predictor.model, "text_encoder", None)
    return predictor, None if encoder is None else encoder.encode_vocabulary(predictor.vocabulary)
