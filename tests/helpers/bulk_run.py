"""Run `dcp-clip segment-many`, and read its results."""

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from dcp_clip_cli.segment_many import main

NAMES = "sky; tree; road; car, automobile"
MODEL = ["--vocabulary", NAMES, "--opts", "INPUT.MIN_SIZE_TEST", "48"]


def run(inputs, output, *options, model=MODEL):
    arguments = ["--input", *map(str, inputs), "--output", str(output), *map(str, options), *model]
    return main(arguments)


def rows(output):
    import pyarrow.parquet as pq  # an optional package

    return pq.read_table(output).to_pylist()  # skips names that begin with an underscore


def label_map(row):
    if row.get("png") is not None:
        return cv2.imdecode(np.frombuffer(row["png"], np.uint8), cv2.IMREAD_UNCHANGED)
    size = [row["height"], row["width"]]
    found = np.full(size, 255, np.uint8)
    for part in row["rle"]:
        rle = {"size": size, "counts": part["counts"].encode()}
        found[coco_mask.decode(rle).astype(bool)] = part["category_id"]
    return found
