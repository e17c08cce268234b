"""Paths of the configs and trained weights that ship with the package."""

from pathlib import Path

__all__ = ["find_config", "find_file", "find_weights", "list_configs"]

_PACKAGE = Path(__file__).resolve().parents[1]
# An installed wheel holds the configs inside the package. In a clone they are next to it.
_CONFIGS = _PACKAGE / "configs"
if not _CONFIGS.is_dir():
    _CONFIGS = _PACKAGE.parent / "configs"
# Trained weights and the one config that they belong to.
_WEIGHTS = {
    "camvid/dcp_clip_tiny.yaml": "camvid_tiny.pth",
    "emoji_scenes/dcp_clip_tiny.yaml": "emoji_scenes_tiny.pth",
}


def list_configs() -> list[str]:
    """Return the names of the shipped configs, for example "camvid/dcp_clip_tiny.yaml"."""
    return sorted(path.relative_to(_CONFIGS).as_posix() for path in _CONFIGS.rglob("*.yaml"))


def find_config(config_file: str | Path) -> Path:
    """Return the path of a config file.

    Args:
        config_file: path of a file, or the name of a shipped config relative to ``configs/``, such
            as "camvid/dcp_clip_tiny.yaml". An existing file has priority over a shipped config.

    Raises:
        FileNotFoundError: if there is neither such a file nor a shipped config of this name.
    """
    for path in (Path(config_file), _CONFIGS / config_file):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"config file '{config_file}' does not exist, and no shipped config has this name: see "
        f"{_CONFIGS}."
    )


def find_file(path: str | Path) -> Path:
    """Return the path of a file, also of one that ships with the package.

    Args:
        path: a path, such as "dcp_clip/weights/camvid_tiny.pth" in any current folder. An existing
            file has priority over a shipped one. It need not exist.
    """
    shipped = _PACKAGE.parent / path
    return shipped if not Path(path).is_file() and shipped.is_file() else Path(path)


def find_weights(config_file: str | Path) -> Path | None:
    """Return the trained weights that ship for a config, or None if there are none.

    Args:
        config_file: as in `find_config`. A config outside the shipped ones has no weights, and
            neither has one that does not exist.
    """
    try:
        path = find_config(config_file).resolve()
    except FileNotFoundError:
        return None
    if not path.is_relative_to(_CONFIGS):
        return None
    name = _WEIGHTS.get(path.relative_to(_CONFIGS).as_posix())
    return None if name is None else _PACKAGE / "weights" / name
