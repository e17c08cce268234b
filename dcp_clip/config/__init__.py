"""The config: its keys, and how config files and options are read."""

from dcp_clip.config.keys import add_dcp_clip_config
from dcp_clip.config.setup import get_cfg, setup_cfg

__all__ = ["add_dcp_clip_config", "get_cfg", "setup_cfg"]
