"""A small data set beside a copy of train_net.py, and a first training there."""

import pytest
from helpers.training_program import REGISTRATION, ROOT, train_net, write_data


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train_net")
    write_data(folder / "data" / "train", 8, seed=0)
    # An odd number, so that two processes have different numbers of images.
    write_data(folder / "data" / "val", 5, seed=1)
    (folder / "program.py").write_text(REGISTRATION + (ROOT / "train_net.py").read_text())
    return folder


@pytest.fixture(scope="session")
def trained(workspace):
    """The output of three iterations, and of two more after --resume."""
    first = train_net(workspace, "out", **{"SOLVER.MAX_ITER": 3})
    second = train_net(workspace, "out", "--resume", **{"SOLVER.MAX_ITER": 5})
    return first, second
