"""A Ray cluster of three nodes on this machine, and a miniature of a bulk run."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcp_clip import Predictor, model_zoo

ROOT = Path(__file__).parents[2]
CONFIG = "camvid/dcp_clip_tiny.yaml"
OPTIONS = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "48"]
NAMES = "sky; tree; road; car, automobile"


@pytest.fixture(scope="session")
def cluster(home):
    """The cluster; the head has the CPUs of the driver's tasks, two other nodes have actors."""
    pytest.importorskip("pyarrow")
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def predictor():
    """The shipped model with small inputs, on the CPU."""
    config = model_zoo.get_config_file(CONFIG)
    return Predictor.from_config_file(config, model_zoo.get_weights(config), OPTIONS, NAMES)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """``photographs / "photos"``: ten images of three sizes, one of them damaged; ``shard.tar``."""
    folder = tmp_path_factory.mktemp("bulk")
    (folder / "photos" / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for i in range(12):
            size = ((40, 56, 3), (56, 40, 3), (64, 64, 3))[i % 3]
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(content, "PNG")
            if i < 9:
                (folder / "photos" / ("sub" if i % 2 else "") / f"{i}.png").write_bytes(
                    content.getvalue()
                )
                continue
            member = tarfile.TarInfo(f"{i:06}.png")
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))
            tar.addfile(tarfile.TarInfo(f"{i:06}.cls"))  # no image
    (folder / "photos" / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    return folder
