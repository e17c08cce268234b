"""A preparation that was killed at any moment and started again gives the same files."""

import pytest

# Two processes write the files; the main one is killed when one of them changes something.
PROGRAM = """
import sys
from pathlib import Path
from dcp_clip.data.preparation.ade20k import prepare_ade20k_847
from dcp_clip.data.preparation.coco_stuff import prepare_coco_stuff
from dcp_clip.data.preparation.program import run_program

prepare = {"ade20k_847": prepare_ade20k_847, "coco_stuff": prepare_coco_stuff}[sys.argv[1]]
options = {"splits": ("train", "val")} if sys.argv[1] == "ade20k_847" else {}
options |= {"source": Path(sys.argv[2]), "image_counts": {"train": 3, "val": 2}}
sys.exit(run_program(prepare, root=Path(sys.argv[3]), workers=2, **options))
"""
MODULES = ("dcp_clip.data.preparation.ade20k", "dcp_clip.data.preparation.coco_stuff")


@pytest.fixture(scope="module")
def program(fork_program, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "prepare.py"
    path.write_text(PROGRAM)
    return fork_program(path, *MODULES)


@pytest.mark.parametrize("name", ["coco_stuff", "ade20k_847"])
def test_kill_9_and_start_again(program, make_case, contents, random_moments, tmp_path, name):
    """Linked photographs with PNG, and shrunk ones with TIFF and a file of settings."""
    case = make_case(name)

    def start(output, action="none", at=0):
        return program([name, case.source, output], output, action, at)

    answer = start(tmp_path / "whole")
    assert answer["status"] == 0, answer["err"]
    whole = contents(tmp_path / "whole")
    assert len(whole) >= 10 and answer["moments"] > 20
    for at in random_moments(answer["moments"], seed=0, number=5):
        output = tmp_path / f"at{at}"
        assert start(output, "kill", at)["status"] == -9
        if at % 2:
            start(output, "kill", at // 3 + 1)  # the start that continues is killed, too
        answer = start(output)
        assert answer["status"] == 0, answer["err"]
        assert contents(output) == whole, at
