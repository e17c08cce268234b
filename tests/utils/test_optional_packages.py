"""Packages that are optional."""

import sys

import pytest

from dcp_clip.utils.optional_packages import import_optional


def test_an_installed_package_is_imported():
    assert import_optional("numpy", "Tests need") is sys.modules["numpy"]


@pytest.mark.parametrize("package, name", [(None, "av"), ("PyAV", "PyAV")])
def test_the_error_says_how_to_install_it(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=f"^Videos need the package {name}: pip install av$"):
        import_optional("av", "Videos need", package)
