"""Packages that are optional."""

import sys

import pytest

from dcp_clip.utils.optional_packages import import_optional


def test_an_installed_package_is_imported():
    assert import_optional("numpy", "Tests need") is sys.modules["numpy"]


@pytest.mark.parametrize("package, name", [(None, "cv2"), ("opencv-python", "opencv-python")])
def test_the_error_says_how_to_install_it(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=f"^Tests need the package {name}: pip install {name}$"):
        import_optional("cv2", "Tests need", package)


def test_a_package_that_is_damaged_says_why(monkeypatch, tmp_path):
    (tmp_path / "damaged_package.py").write_text("raise ImportError('libGL.so.1 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"^libGL\.so\.1 is missing$"):
        import_optional("damaged_package", "Tests need")
