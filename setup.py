"""The folders of the package. ``configs/`` ships as ``dcp_clip/configs``; see pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["dcp_clip", "dcp_clip.*", "dcp_clip_cli"]),
        "dcp_clip.configs",
    ],
    package_dir={"dcp_clip.configs": "configs"},
    package_data={
        "dcp_clip": ["weights/*"],
        "dcp_clip.app": ["samples/*", "static/*"],
        "dcp_clip.configs": ["**/*.yaml"],
        "dcp_clip.emoji_scenes": ["names.json"],
        "dcp_clip.modeling.clip": ["model_configs/*.json"],
        "dcp_clip.vocabulary": ["*.json", "names/*.json", "templates/*.txt"],
    },
    include_package_data=False,
)
