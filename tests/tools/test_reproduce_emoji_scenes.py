"""reproduce_emoji_scenes.py from nothing to the tables, on programs that only leave their files."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import reproduce_emoji_scenes

from dcp_clip.emoji_scenes.subsets import SCENE_COUNTS
from dcp_clip.experiments import reproduce_runner as reproduce_runner
from dcp_clip.experiments import reproduce_steps as reproduce_steps

PLAN = """
base: base.yaml
seeds: [1, 2]
clip: {config: base.yaml, weights: small.pth}
variants:
  - {name: default, note: every stage}
  - {name: another, note: "stage 2: none", overrides: {A.B: other}}
evaluations:
  - {name: coarse, note: the coarse maps, weights_of: default, overrides: {A.B: coarse}}
training_free:
  - {name: free, note: CLIP alone}
"""
# Stand-ins for the programs. They note their arguments in "calls".
PROGRAM = """
import json, os, pathlib, sys
with open("calls", "a") as file:
    file.write(" ".join(sys.argv) + "\\n")
def value(key):
    return sys.argv[sys.argv.index(key) + 1]
"""
PREPARE = f"""
folder = pathlib.Path(os.environ["DETECTRON2_DATASETS"], "emoji_scenes", "scenes")
folder.mkdir(parents=True)
for name, count in {SCENE_COUNTS!r}.items():
    (folder / f"{{name}}.json").write_text(json.dumps({{"count": count}}))
"""
TRAIN = """
out = pathlib.Path(value("OUTPUT_DIR"))
out.mkdir(parents=True, exist_ok=True)
if "--eval-only" in sys.argv:
    assert pathlib.Path(value("MODEL.CLIP.PRETRAINED")).exists()
    things = 50.0
    if "MODEL.WEIGHTS" in sys.argv:
        things = float(pathlib.Path(value("MODEL.WEIGHTS")).read_text())
    metrics = {"sem_seg": {"mIoU_things": things, "mIoU_stuff": 40.0},
               "proposals": {"recall_things": 90.0}, "speed": {"model_images_per_second": 100.0}}
    results = {name: metrics for name in eval(value("DATASETS.TEST"))}
    (out / "results.json").write_text(json.dumps({"results": results}))
else:
    if os.path.exists("broken"):
        sys.exit("RuntimeError: no space left")
    (out / "model_final.pth").write_text(value("SEED") if "SEED" in sys.argv else "")
    (out / "small.pth").touch()
    (out / "last_checkpoint").write_text("model_final.pth")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's folder with the stand-ins, and with a plan."""
    root = tmp_path / "project"
    for folder in ("datasets", "tools"):
        (root / folder).mkdir(parents=True)
    (root / "datasets" / "prepare_emoji_scenes.py").write_text(PROGRAM + PREPARE)
    for name in ("tools/pretrain_clip.py", "train_net.py"):
        (root / name).write_text(PROGRAM + TRAIN)
    (root / "plan.yaml").write_text(PLAN)
    (root / "base.yaml").write_text("VERSION: 2\n")
    for module in (reproduce_steps, reproduce_runner):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(reproduce_runner, "_POLL_SECONDS", 0.01)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return root


@pytest.fixture
def run(project, capsys):
    """``run(*arguments)``: exit status, output, errors, and the calls of this run."""

    def start(*arguments):
        (project / "calls").write_text("")
        paths = ["--output", str(project / "out"), "--plan", str(project / "plan.yaml")]
        status = reproduce_emoji_scenes.main([*paths, *arguments])
        told = capsys.readouterr()
        return status, told.out, told.err, (project / "calls").read_text().splitlines()

    return start


def test_from_nothing_to_the_tables(run, project):
    status, out, _, calls = run()
    assert status == 0
    assert [call.split()[0] for call in calls[:2]] == [
        "datasets/prepare_emoji_scenes.py",
        "tools/pretrain_clip.py",
    ]
    assert len(calls) == 3 + 2 * 5  # CLIP alone once; two trainings, three evaluations a seed
    lines = [line.replace(" ", "") for line in out.splitlines()]
    assert "|run|base|unseen|unseen_style|all|mean|" in lines
    start = lines.index("|run|base|unseen|unseen_style|all|mean|") + 2
    names = [line.split("|")[1] for line in lines[start : start + 4]]
    assert names == ["default", "another", "coarse", "free"]  # the plan's order
    assert lines[start].startswith("|default|1.5±0.7(2)|") and "|free|50.0(1)|" in lines[start + 3]
    assert "mIoU_things,defaultlesseach,mean±standarderror(seeds):" in lines
    assert "|another|stage2:none|" in lines
    assert any(line.startswith("|traindefault,seed1|") for line in lines)
    assert (project / "out" / "test" / "summary.md").read_text() in out

    status, again, _, calls = run()
    assert status == 0 and calls == []
    assert "13 of 13 steps are done already." in again and "1.5 ± 0.7 (2)" in again


def test_validation_reads_the_same_weights(run, project):
    run("--seeds", "1")
    status, out, _, calls = run("--seeds", "1", "--split", "val", "--variants", "default, coarse")
    assert status == 0 and len(calls) == 2
    assert all("--eval-only" in call and "base_val" in call for call in calls)
    assert (project / "out" / "val" / "coarse" / "seed1" / "results.json").exists()
    assert "another" not in out


def test_options_for_all_rows(run, project):
    options = ("--variants", "default,free", "--seeds", "1")
    status, _, _, calls = run(*options, "SOLVER.WISE_FT_ALPHA", "0.25")
    given = [call.split()[0] for call in calls if "SOLVER.WISE_FT_ALPHA 0.25" in call]
    assert status == 0 and given == 3 * ["train_net.py"] and len(calls) == 5
    status, _, err, calls = run(*options)
    assert status == 1 and "made with" in err and calls == []


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("SOLVER.MOMENTUM",), "row default: .*odd length"),
        (("SOLVER.NO_SUCH_KEY", "1"), "row default: .*NO_SUCH_KEY"),
        (("SOLVER.WISE_FT_ALPHA", "0"), "row default: .*WISE_FT_ALPHA"),
        (("SEED", "3"), "SEED cannot be set here"),
        (("free", "--seeds", "--split", "val"), "options come before KEY VALUE"),
    ],
)
def test_options_that_no_row_can_take_are_refused_before_hours_of_work(run, wrong, message):
    status, _, err, calls = run("--variants", "default", *wrong)
    assert status == 1 and calls == []
    assert re.fullmatch(f"error: {message}[^\n]*\n", err), err


def test_list_runs_nothing(run, project):
    run("--variants", "default", "--seeds", "1")
    (project / "out" / "default" / "seed1" / "last_checkpoint").unlink()
    for option in ("--list", "--dry-run"):
        status, out, _, calls = run(option, "--seeds", "1")
        assert status == 0 and calls == []
        assert "# clip: done\n" in out and "# evaluate free: to do\n" in out
        command = "python train_net.py --config-file base.yaml --resume MODEL.CLIP.PRETRAINED"
        assert f"# train default, seed 1: begun\n{command} out/clip/small.pth " in out


def test_failure_and_rerun(run, project):
    run("--variants", "free")
    (project / "broken").touch()
    status, _, err, calls = run()
    assert status == 1 and len(calls) == 1
    assert err.startswith("error: 'train default, seed 1' failed after")
    assert "RuntimeError: no space left" in err and "default/seed1/step.log" in err
    (project / "broken").unlink()
    status, _, _, calls = run("--jobs", "2")
    assert status == 0 and len(calls) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", "5"], r"default/seed1 was made with other settings .*MAX_ITER 5"),
        (["--variants", "nothing"], "there is no row 'nothing'"),
        (["--plan", "absent.yaml"], "absent.yaml cannot be read"),
    ],
)
def test_errors_are_one_sentence(run, arguments, message):
    run("--variants", "default", "--seeds", "1")
    status, _, err, calls = run(*arguments)
    assert status == 1 and calls == [] and err.count("\n") == 1
    assert re.search(message, err)


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--seeds", "x"], ["--split", "train"]])
def test_wrong_arguments(run, arguments):
    with pytest.raises(SystemExit):
        run(*arguments)


def test_steps_share_the_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce_emoji_scenes, "available_cpus", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = [
        reproduce_emoji_scenes.step_environment(jobs, tmp_path).get("OMP_NUM_THREADS")
        for jobs in (1, 2, 3, 16)
    ]
    assert threads == [None, "4", "2", "1"]
    environment = reproduce_emoji_scenes.step_environment(1, tmp_path)
    assert environment["DETECTRON2_DATASETS"] == str(tmp_path)
    assert environment["PATH"] == os.environ["PATH"]


def test_records_are_json(run, project):
    run("--variants", "free")
    record = json.loads((project / "out" / "clip" / "step.json").read_text())
    assert record["command"][0] == "tools/pretrain_clip.py" and record["seconds"] >= 0
