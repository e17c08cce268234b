"""The command dcp-clip: its commands, their options, and its speed before it imports PyTorch."""

import subprocess
import sys
from pathlib import Path

import pytest

from dcp_clip_cli import main as cli
from dcp_clip_cli import segment, training

ROOT = Path(__file__).parents[1]
# None in sys.modules makes an import fail.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["dcp_clip"] = None
from dcp_clip_cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)], ids=str)
def test_help_imports_neither_torch_nor_the_package(command):
    arguments = [sys.executable, "-c", WITHOUT_TORCH, *command, "--help"]
    run = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"usage: {' '.join(['dcp-clip', *command])} [-h]")


def test_unknown_commands_and_options(capsys):
    for arguments, message in (
        ([], "required: COMMAND"),
        (["paint"], "invalid choice: 'paint' (choose from"),
        (["segment", "--colour"], "dcp-clip segment: error: unrecognized arguments: --colour"),
        (["segment"], "dcp-clip segment: error: give --input or --samples"),
    ):
        with pytest.raises(SystemExit) as raised:
            cli.main(arguments)
        assert raised.value.code == 2 and message in capsys.readouterr().err


def test_options_reach_the_program(monkeypatch):
    found = []
    monkeypatch.setattr(training, "start", found.append)
    monkeypatch.setattr(segment, "run", lambda args: found.append(args) or 7)
    options = ["--config-file", "a.yaml", "MODEL.DEVICE", "cpu"]
    assert cli.main(["train", *options]) == 0 and cli.main(["evaluate", *options]) == 0
    assert [args.eval_only for args in found] == [False, True]
    assert found[1].config_file == "a.yaml" and found[1].opts == ["MODEL.DEVICE", "cpu"]
    assert cli.main(["segment", "--input", "x", "--opts", "MODEL.DEVICE", "cpu"]) == 7
    assert found[2].input == ["x"] and found[2].opts == ["MODEL.DEVICE", "cpu"]


def test_ctrl_c_has_its_exit_status(monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(segment, "run", interrupt)
    assert cli.main(["segment", "--input", "x"]) == 130


def test_errors_of_the_user_are_one_sentence(capsys):
    with pytest.raises(SystemExit, match="^config file 'absent.yaml' does not exist"):
        cli.main(["evaluate", "--config-file", "absent.yaml"])


@pytest.mark.parametrize(
    "program, arguments",
    [
        ("demo/demo.py", ["--input", "in"]),
        ("tools/segment_many.py", ["--input", "in"]),
        ("tools/dry_run.py", ["--config-file", "a.yaml"]),
        ("tools/export.py", []),
        ("tools/export_weights.py", ["a.pth"]),
        ("tools/montage.py", ["in"]),
        ("tools/reproduce_emoji_scenes.py", []),
    ],
)
def test_an_empty_path_for_the_output_is_an_error(
    load_program, monkeypatch, tmp_path, capsys, program, arguments
):
    """It would be the current folder, and fill or overwrite that."""
    monkeypatch.chdir(tmp_path)
    module = load_program(program)
    start = module.parse_args if program == "tools/export_weights.py" else module.main
    for empty in ("", " "):
        with pytest.raises(SystemExit) as raised:
            start(["--output", empty, *arguments])
        assert raised.value.code == 2
        assert f"--output: '{empty}' is empty: name where to write" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "program, options",
    [
        ("demo/demo.py", ["--input", "--weights", "--config-file"]),
        ("tools/segment_many.py", ["--input", "--weights", "--config-file"]),
        ("demo/app.py", ["--weights", "--config-file"]),
        ("tools/export.py", ["--weights", "--config-file"]),
    ],
)
def test_an_empty_path_for_an_input_is_an_error(load_program, capsys, program, options):
    """It would be the current folder, the defaults of Detectron2, or random weights."""
    main = load_program(program).main
    for option in options:
        with pytest.raises(SystemExit) as raised:
            main([option, ""])
        assert raised.value.code == 2
        assert f"{option}: '' is empty: name what to read" in capsys.readouterr().err
