"""What `benchmark.py --demo` measures: a folder's images a second, by the demo and the model alone.

The demo's own functions run: the one that overlaps reading, model and writing, and the predictor.
"""

import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm

from dcp_clip.benchmarking.meters import seconds
from dcp_clip.engine.checkpoint import shipped_weights
from dcp_clip.predictor import Predictor
from dcp_clip.utils.image_io import read_image_and_size, write_png
from dcp_clip.utils.visualization import save_label_map

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "demo"))

from demo_inputs import Job, plan_jobs

import demo

# Demo and model alone take turns of so many images, so that a disturbance of the machine hits both.
TURN = 50
TAKEN_APART = 10  # images whose steps are timed one after another


def load_predictor(
    config_file: str, vocabulary: str | None, opts: Sequence[str], device: str
) -> Predictor:
    """The demo's predictor: with the weights that the repository has for the config, unless
    `opts` names others.

    Raises:
        as `Predictor.from_config_file`.
    """
    weights = shipped_weights(config_file, opts)
    opts = ["MODEL.DEVICE", device, *opts]
    return Predictor.from_config_file(config_file, weights, opts, vocabulary=vocabulary)


def measure_demo(predictor: Predictor, inputs: Sequence[str], count: int) -> dict:
    """Figures of the demo on `count` images; times in seconds.

    The images are repeated if there are fewer. The model alone is given images that are decoded
    already, one by one, with nothing else running. Processor time is given as well: on a machine
    that is busy with other things the wall clock favours the demo, which has more threads.

    Raises:
        ImageReadError: if an input holds no image or cannot be read.
        RuntimeError: if the demo fails on an image, naming it.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        found = plan_jobs(inputs, output)
        jobs = [
            Job(found[i % len(found)].image, Path(f"{i}", found[i % len(found)].stem.name))
            for i in range(count)
        ]
        steps = _time_steps(predictor, jobs[:TAKEN_APART], output)  # a warm-up at the same time
        spent = {"model": np.zeros(2), "demo": np.zeros(2)}
        turns = [jobs[start : start + TURN] for start in range(0, count, TURN)]
        for turn in tqdm(turns, desc="demo", unit=f" x {TURN} images"):
            spent["model"] += sum(_time_alone(predictor, job) for job in turn)
            spent["demo"] += _timed(partial(_run, predictor, turn, output), predictor)
    row = {"images": count, "distinct": len(found), "vocabulary": len(predictor.vocabulary)}
    for name, (wall, cpu) in spent.items():
        row |= {f"{name}_seconds": float(wall), f"{name}_cpu_seconds": float(cpu)}
    share = row["model_seconds"] / row["demo_seconds"]
    return row | {"share": share, "step_seconds": steps}


def _run(predictor: Predictor, jobs: Sequence[Job], output: Path) -> None:
    tally = demo.run(predictor, jobs, output, io.StringIO())
    if tally.interrupted:
        raise KeyboardInterrupt
    if tally.failed:
        raise RuntimeError(tally.failed[0])


def _timed(function: Callable[[], object], predictor: Predictor) -> np.ndarray:
    """(2,) seconds of one call: by the wall clock, and of processors, all threads together."""
    before = time.process_time()
    wall = seconds(function, predictor.model.device)
    return np.array([wall, time.process_time() - before])


def _time_alone(predictor: Predictor, job: Job) -> np.ndarray:
    image, size = read_image_and_size(job.image, predictor.max_input_pixels)
    return _timed(lambda: predictor(image, size), predictor)


def _time_steps(predictor: Predictor, jobs: Sequence[Job], output: Path) -> dict[str, float]:
    """Median seconds an image of each step of the demo, nothing overlapped."""
    times: dict[str, list[float]] = {}

    def timed(step: str, function: Callable, *args: object) -> object:
        result: list = []
        spent = seconds(lambda: result.append(function(*args)), predictor.model.device)
        times.setdefault(step, []).append(spent)
        return result[0]

    for job in jobs:
        image, size = timed("read", read_image_and_size, job.image, predictor.max_input_pixels)
        prediction = timed("resize, model, label map", predictor, image, size)
        overlay = timed("draw", prediction.overlay, image)
        timed("write overlay", partial(write_png, quick=True), output / "overlay.png", overlay)
        labels = prediction.label_map, prediction.vocabulary
        timed("write labels", save_label_map, output / "labels.png", *labels)
    return {step: median(spent) for step, spent in times.items()}
