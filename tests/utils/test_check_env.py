"""The report of ``python -m dcp_clip.utils.check_env``: what it finds, what it says, how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dcp_clip import check_env
from dcp_clip.utils.hardware import bf16_support, hardware_summary


def make_package(folder: Path, name: str, version: str, code: str = "") -> None:
    """Lay out an installed distribution with one module, as pip would leave it behind."""
    (folder / f"{name}.py").write_text(code)
    dist_info = folder / f"{name}-{version}.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    (dist_info / "RECORD").write_text(f"{name}.py,,\n{dist_info.name}/METADATA,,\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the import path to put packages into."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_requirement_in_range_is_fine(site):
    make_package(site, "sound_package", "1.5")
    check = check_env.check_requirement(Requirement("sound_package>=1,<2"))
    assert (check.found, check.tested, check.problem) == ("1.5", ">=1,<2", "")


def test_local_build_of_a_version_is_that_version(site):
    make_package(site, "local_package", "2.14.1+cpu")
    assert not check_env.check_requirement(Requirement("local_package>=2.14,<2.15")).problem


def test_version_outside_the_range_is_reported_but_not_fatal(site):
    make_package(site, "new_package", "3.0")
    check = check_env.check_requirement(Requirement("new_package<3"))
    assert check.problem == "outside the tested range"
    assert not check.fatal
    assert "install" in check_env.repair_command([check])


def test_missing_requirement_is_fatal():
    check = check_env.check_requirement(Requirement("no_such_package_anywhere>=1"))
    assert (check.found, check.problem, check.fatal) == ("missing", "not installed", True)
    assert "make -C" in check_env.repair_command([check])


def test_damaged_package_is_to_be_replaced(site):
    make_package(site, "damaged_package", "1.0", "raise AttributeError('lost symbol')")
    check = check_env.check_requirement(Requirement("damaged_package>=1,<2"))
    assert check.fatal
    assert "AttributeError: lost symbol" in check.problem
    command = check_env.repair_command([check])
    assert "--force-reinstall --no-deps" in command
    assert "'damaged_package" in command  # quoted: "<" and ">" mean something to a shell


def test_package_that_lacks_another_names_it(site):
    make_package(site, "needy_package", "1.0", "import no_such_package_anywhere")
    check = check_env.check_requirement(Requirement("needy_package"))
    assert check.problem == "needs no_such_package_anywhere, which is missing"
    assert check.repair == check_env.INSTALL


def test_module_of_another_distribution_counts(site, monkeypatch):
    make_package(site, "shared_module", "4.11")
    monkeypatch.setitem(check_env.MODULES, "shared-module-headless", "shared_module")
    check = check_env.check_requirement(Requirement("shared-module-headless<5"))
    assert (check.found, check.problem) == ("4.11 (shared_module)", "")


def test_damaged_detectron2_is_removed_before_it_is_installed():
    damaged = check_env.Check(
        "detectron2", "0.6", problem="x", repair=check_env.REPLACE, distribution="sal-detectron2"
    )
    command = check_env.repair_command([damaged])
    assert command.index("uninstall --yes sal-detectron2") < command.index("make -C")


def test_nothing_to_mend_gives_no_command():
    assert check_env.repair_command([check_env.Check("torch", "2.14.1")]) == ""


def test_detectron2_tells_its_build():
    check = check_env.check_detectron2()
    assert not check.fatal
    assert check.found.endswith(("pure Python", "compiled"))


def test_requirements_all_have_ranges_and_can_be_checked():
    requirements = check_env.read_requirements()
    assert {"torch", "open_clip_torch", "timm"} <= {r.name for r in requirements}
    assert all(r.specifier for r in requirements)


def test_missing_requirements_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip install -e"):
        check_env.read_requirements(tmp_path / "requirements.txt")


def test_report_lists_problems_and_one_command():
    checks = [
        check_env.Check("torch", "2.14.1", ">=2.14,<2.15"),
        check_env.Check("timm", "missing", ">=1", "not installed", True, check_env.INSTALL),
    ]
    report = check_env.format_report(checks, {"CPU": "some CPU"})
    assert "torch    2.14.1   >=2.14,<2.15  ok" in report
    assert "timm     missing  >=1           not installed" in report
    assert report.count("make -C") == 1


def test_program_succeeds_in_a_complete_environment(capsys):
    assert check_env.main() == 0
    assert "detectron2" in capsys.readouterr().out


def test_program_without_any_package_names_the_command():
    # -S leaves out site-packages, so that nothing beyond the standard library can be imported.
    run = subprocess.run(
        [sys.executable, "-S", "-m", "dcp_clip.utils.check_env"],
        cwd=check_env.ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stderr
    assert "make -C" in run.stdout


def test_environment_summary_is_text_about_versions_and_machine():
    summary = check_env.environment_summary()
    assert {"Python", "torch", "detectron2", "CPU", "memory", "GPU"} <= set(summary)
    assert all(isinstance(text, str) and text for text in summary.values())
    assert set(hardware_summary()) <= set(summary)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "avx512bw", "avx512_bf16"}, "native"),
        ({"avx2", "avx512bw"}, "emulated with AVX-512"),
        ({"avx2"}, "slower"),
        (set(), "unknown"),
    ],
)
def test_bf16_support_follows_the_instruction_sets(flags, expected):
    assert expected in bf16_support(flags)
