"""What train_net.py shows: errors, names of any script, and the log."""

import os
import shutil
import subprocess
import sys

from helpers.training_program import CONFIG, ROOT, command_line, launch, two_processes

from dcp_clip_cli.training import describe


def test_error_of_a_user_is_one_sentence(workspace):
    """Without a traceback, and once, even if every process finds it."""
    options = {"MODEL.WEIGHTS": "absent.pth", "SOLVER.MAX_ITER": 2}
    status, log = launch(workspace, "error", *two_processes(), **options)
    assert status == 1
    sentence = "MODEL.WEIGHTS: 'absent.pth' does not exist"
    assert "Traceback" not in log and log.count(sentence) == 1
    assert log.rstrip().splitlines()[-1].startswith(sentence)


def test_debug_shows_the_traceback(workspace):
    status, log = launch(workspace, "debug", "--debug", **{"MODEL.WEIGHTS": "absent.pth"})
    assert status == 1 and "Traceback" in log and "WeightsError: MODEL.WEIGHTS: " in log


CHINESE = f"""
_BASE_: "{CONFIG}"
DATASETS:
  TEST: ("mini",)
  SEM_SEG_FOLDERS:  # 训练
    - name: "mini"
      images: "data/train/images"
      labels: "data/train/labels"
      names: ["天空", "树", "汽车"]
"""


def test_names_that_the_locale_has_not(workspace):
    """The log is in UTF-8; the screen shows the numbers of the characters."""
    (workspace / "chinese.yaml").write_text(CHINESE, encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "", "OMP_NUM_THREADS": "1"}
    options = {"DATASETS.TRAIN": ("mini",), "DATASETS.TEST": ("mini",), "SOLVER.MAX_ITER": 2}
    arguments = command_line("chinese", "--config-file", "chinese.yaml", **options)
    run = subprocess.run(  # a fork would have the locale of its server
        [sys.executable, "program.py", *arguments],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(ROOT), **locale},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    screen, log = run.stdout, (workspace / "chinese" / "log.txt").read_text(encoding="utf-8")
    assert run.returncode == 0, screen
    assert "Traceback" not in screen + log and "Error" not in screen
    assert "天空" in log and r"\u5929\u7a7a" in screen


def test_damaged_image_is_one_sentence(workspace):
    """It is found by a worker process of the data loader."""
    shutil.copytree(workspace / "data", workspace / "damaged" / "data")
    for path in (workspace / "damaged" / "data" / "train" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    (workspace / "damaged" / "program.py").write_text((workspace / "program.py").read_text())
    status, log = launch(workspace / "damaged", "out", **{"DATALOADER.NUM_WORKERS": 1})
    assert status == 1 and "Traceback" not in log
    assert "cannot be read" in log.rstrip().splitlines()[-1]


def test_screen_shows_no_config(workspace, trained):
    """It is in OUTPUT_DIR/config.yaml and log.txt."""
    first, _ = trained
    assert "CLASS_REFINEMENT" not in first and "Warning" not in first
    before_training = first[: first.index("Starting training")]
    assert len(before_training.splitlines()) < 40
    for name in ("config.yaml", "log.txt"):
        assert "CLASS_REFINEMENT" in (workspace / "out" / name).read_text()


def test_message_of_a_worker_with_several_lines():
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  File x\n"
    error = ValueError(f"{text}ValueError: the reason: this\nand a line without a colon\n")
    assert describe(error) == "the reason: this and a line without a colon"
