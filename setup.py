"""Package definition of DCP-CLIP; versions of what it needs are read from the requirement files."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return ``__version__`` of ``dcp_clip/__init__.py`` without importing the package."""
    text = (ROOT / "dcp_clip" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('dcp_clip/__init__.py has no line of the form __version__ = "1.2.3"')
    return match[1]


def read_requirements(name: str) -> list[str]:
    """Return the requirements listed in the file ``name``, without comments and blank lines."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


setup(
    name="dcp_clip",
    version=read_version(),
    description="Open-vocabulary semantic segmentation with CLIP, from coarse to fine",
    license="Apache-2.0",
    packages=find_packages(include=["dcp_clip", "dcp_clip.*"]),
    package_data={
        "dcp_clip": [
            "templates/*.txt",
            "names/*.json",
            "natural_colors.json",
            "data/emoji_scenes/names.json",
            "modeling/model_configs/*.json",
            "weights/*",
        ]
    },
    # From below it is scikit-image that sets the limit by its wheels, from above NumPy 1.26.
    python_requires=">=3.11,<3.13",
    install_requires=read_requirements("requirements.txt"),
    extras_require={
        "demo": read_requirements("requirements-demo.txt"),
        "emoji": read_requirements("requirements-emoji.txt"),
        "dev": read_requirements("requirements-dev.txt"),
    },
)
