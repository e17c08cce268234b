"""tools/reproduce_emoji_scenes.py, with a stand-in for train_net.py that only writes its files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dcp_clip.config import setup_cfg
from dcp_clip.modeling.stages import registry

ROOT = Path(__file__).parents[2]
PLAN = """
base: base.yaml
seeds: [1, 2]
variants:
  - {name: default, note: every stage}
  - {name: plain, note: "stage 2: none", overrides: {A.B: other}}
baselines:
  - {name: slow, note: takes hours, config: slow.yaml, on_request: true}
evaluations:
  - {name: coarse, note: coarse logits, weights_of: plain, overrides: {A.B: coarse}}
training_free:
  - {name: free, note: CLIP alone, config: free.yaml}
"""
# Writes its arguments to "calls". The mIoU of an evaluation is the seed of the training.
TRAIN_NET = """
import json, os, pathlib, sys, time
pathlib.Path("path").write_text(os.environ["PYTHONPATH"])
with open("calls", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
def value(key):
    return sys.argv[sys.argv.index(key) + 1]
out = pathlib.Path(value("OUTPUT_DIR"))
if "--eval-only" in sys.argv:
    things = 50.0
    if "MODEL.WEIGHTS" in sys.argv:
        things = float(pathlib.Path(value("MODEL.WEIGHTS")).read_text())
    metrics = {"sem_seg": {"mIoU_things": things, "mIoU_stuff": 40.0},
               "proposals": {"recall_things": 90.0}, "speed": {"model_images_per_second": 100.0}}
    results = {name: metrics for name in eval(value("DATASETS.TEST"))}
    (out / "results.json").write_text(json.dumps({"results": results}))
else:
    if pathlib.Path("broken").exists():
        sys.exit("RuntimeError: no space left")
    if pathlib.Path("slow").exists():
        (out / "started").touch()
        time.sleep(60)
    (out / "model_final.pth").write_text(value("SEED"))
    (out / "last_checkpoint").write_text("model_final.pth")
"""


@pytest.fixture
def project(tmp_path):
    """A project folder with the programs and the list of rows."""
    for name in ("reproduce_emoji_scenes.py", "summarize_runs.py"):
        (tmp_path / "tools").mkdir(exist_ok=True)
        shutil.copy(ROOT / "tools" / name, tmp_path / "tools" / name)
    plan = tmp_path / "configs" / "emoji_scenes" / "ablation.yaml"
    plan.parent.mkdir(parents=True)
    plan.write_text(PLAN)
    (tmp_path / "train_net.py").write_text(TRAIN_NET)
    return tmp_path


@pytest.fixture
def run(project, load_program, monkeypatch, capfd):
    """``run(*arguments)``: status and output, and the arguments of the calls of train_net.py.

    The program runs in this process, which has imported PyTorch already.
    """
    program = load_program(project / "tools" / "reproduce_emoji_scenes.py")
    monkeypatch.chdir(project)

    def start(*arguments):
        (project / "calls").write_text("")
        capfd.readouterr()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            status = program.main(["--output", "out", *arguments])
        finally:
            signal.signal(signal.SIGTERM, handler)
        out, err = capfd.readouterr()
        done = SimpleNamespace(returncode=status, stdout=out, stderr=err)
        return done, (project / "calls").read_text().splitlines()

    return start


def test_trains_and_evaluates_every_row_once(run, project):
    done, calls = run()
    assert done.returncode == 0, done.stderr
    # Two rows and two seeds are trained; three rows with seeds and CLIP alone are evaluated.
    assert sum("--resume" in call for call in calls) == 4
    assert sum("--eval-only" in call for call in calls) == 7
    lines = [line.replace(" ", "") for line in done.stdout.splitlines()]
    start = lines.index("|run|base|unseen|unseen_style|all|mean|") + 2
    names = [line.split("|")[1] for line in lines[start : start + 4]]
    assert names == ["default", "plain", "coarse", "free"]  # the order of the list
    assert lines[start].startswith("|default|1.5±0.7(2)|") and "|free|50.0(1)|" in lines[start + 3]
    assert "mIoU_things,defaultminuseachrun,mean±standarderror(seeds):" in lines
    assert "|plain|stage2:none|" in lines
    assert (project / "out" / "test" / "summary.md").read_text() in done.stdout

    again, calls = run()
    assert again.returncode == 0 and calls == [] and "1.5 ± 0.7 (2)" in again.stdout


def test_weights_that_were_trained_again_are_evaluated_again(run, project):
    arguments = ("--variants", "default", "--seeds", "1")
    run(*arguments)
    shutil.rmtree(project / "out" / "default")
    done, calls = run(*arguments, "--iterations", "5")
    assert done.returncode == 0 and len(calls) == 2 and "--eval-only" in calls[1]


def test_arguments_of_train_net(run, project):
    clip = project / "clip.pth"
    clip.touch()
    _, calls = run(
        *("--variants", "coarse, free", "--seeds", "2", "--iterations", "7", "--clip", str(clip)),
        *("--base-split", "1", "--split", "val", "--import", "my_heads", "--import", "more.of"),
        *("A.B", "mine", "SEED", "9"),
    )
    training, coarse, free = calls
    modules = "--import my_heads --import more.of"
    # KEY VALUE replaces keys of the row.
    start = f"--config-file base.yaml --resume {modules} A.B other A.B mine SEED 9 "
    assert training.startswith(start)
    # train_net.py runs in its own folder and finds modules in the working directory.
    assert str(project) in (project / "path").read_text().split(os.pathsep)
    assert f"OUTPUT_DIR {project}/out/plain/seed2 SEED 2 SOLVER.MAX_ITER 7" in training
    assert "DATASETS.TEST ()" in training
    for call in calls:
        assert f"MODEL.CLIP.PRETRAINED {clip}" in call
        assert "DATASETS.TRAIN ('emoji_scenes_split1_base_train',)" in call
    # The overrides of the trained row come before its own.
    assert f"--eval-only {modules} A.B other A.B coarse A.B mine SEED 9 " in coarse
    assert coarse.endswith(f"MODEL.WEIGHTS {project}/out/plain/seed2/model_final.pth")
    assert f"OUTPUT_DIR {project}/out/val/coarse/seed2 " in coarse
    subsets = ("base", "unseen", "unseen_style", "all")
    assert str(tuple(f"emoji_scenes_split1_{name}_val" for name in subsets)) in coarse
    assert free.startswith("--config-file free.yaml --eval-only")
    assert free.endswith(f"OUTPUT_DIR {project}/out/val/free") and "MODEL.WEIGHTS" not in free


def test_validation_and_test_share_the_trainings(run):
    run("--seeds", "1")
    done, calls = run("--seeds", "1", "--split", "val", "--variants", "default,coarse")
    assert done.returncode == 0 and len(calls) == 2
    assert all("--eval-only" in call and "base_val" in call for call in calls)


def test_rows_on_request(run):
    done, calls = run("--variants", "slow", "--seeds", "1")
    assert done.returncode == 0 and len(calls) == 2 and "slow.yaml" in calls[0]


def test_evaluation_is_repeated_until_it_has_all_data_sets(run, project):
    run("--variants", "free")
    path = project / "out" / "test" / "free" / "results.json"
    content = json.loads(path.read_text())
    del content["results"]["emoji_scenes_all_test"]
    path.write_text(json.dumps(content))
    assert len(run("--variants", "free")[1]) == 1


def test_failure_is_one_sentence_and_the_same_command_continues(run, project):
    run("--variants", "free")
    (project / "broken").touch()
    done, calls = run()
    assert done.returncode == 1 and len(calls) == 1
    assert re.fullmatch(
        r"error: .*out/default/seed1 failed: RuntimeError: no space left \(see .*\)\n", done.stderr
    )
    (project / "broken").unlink()
    done, calls = run("--jobs", "2")
    assert done.returncode == 0 and len(calls) == 4 + 6


def test_stopping_ends_the_running_trainings(run, project):
    (project / "slow").touch()
    command = [sys.executable, "tools/reproduce_emoji_scenes.py", "--output", "out", "--jobs", "2"]
    process = subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True)
    while len(list(project.glob("out/*/*/started"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=30)  # the trainings sleep for 60 seconds
    assert process.returncode == 130 and message.startswith("Stopped. The same command continues")
    assert len((project / "calls").read_text().splitlines()) == 2
    (project / "slow").unlink()
    done, calls = run("--jobs", "2")
    assert done.returncode == 0 and len(calls) == 4 + 7


def test_errors(run):
    run("--variants", "default", "--seeds", "1")
    for arguments, message in (
        (["--iterations", "5"], "out/default/seed1 was made with other settings"),
        (["SOLVER.BASE_LR", "1"], "out/default/seed1 was made with other settings"),
        (["--variants", "nothing"], "there is no row 'nothing'; there are: default, plain,"),
        (["--clip", "absent.pth"], "--clip: the file absent.pth does not exist"),
    ):
        done, calls = run(*arguments)
        assert done.returncode == 1 and calls == [] and done.stderr.count("\n") == 1
        assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "--jobs: invalid positive value: '0'"),
        (["--iterations", "-1"], "--iterations: invalid positive value: '-1'"),
        (["--seeds", "1,a"], "--seeds: invalid seed_list value: '1,a'"),
    ],
)
def test_wrong_arguments(load_program, capsys, arguments, message):
    with pytest.raises(SystemExit):
        load_program("tools/reproduce_emoji_scenes.py").main(arguments)
    assert message in capsys.readouterr().err


def test_rows_of_the_project(load_program):
    program = load_program("tools/reproduce_emoji_scenes.py")
    rows, seeds = program.load_rows(ROOT / program.PLAN)
    assert next(iter(rows)) == "default" and not rows["default"]["overrides"] and seeds
    registries = {
        "PROPOSAL": registry.CATEGORY_PROPOSAL_REGISTRY,
        "TEXT_GUIDANCE": registry.TEXT_GUIDANCE_REGISTRY,
        "COARSE_DECODER": registry.COARSE_DECODER_REGISTRY,
        "FINE_DECODER": registry.FINE_DECODER_REGISTRY,
        "CLASS_REFINEMENT": registry.CLASS_REFINEMENT_REGISTRY,
    }
    default = setup_cfg(ROOT / rows["default"]["config"])
    for name, row in rows.items():
        cfg = setup_cfg(ROOT / row["config"], row["overrides"])  # KeyError for unknown keys
        assert all(cfg.MODEL.DCP_CLIP[node].NAME in known for node, known in registries.items())
        assert row["trained_row"] in ("", *rows)
        if row["config"] == rows["default"]["config"] and name != "default":
            assert cfg != default, f"{name} overrides nothing"
