"""The config keys, and functions that read config files and options."""

from dcp_clip.config.keys import add_dcp_clip_config
from dcp_clip.config.setup import get_cfg, setup_cfg

__all__ = ["add_dcp_clip_config", "get_cfg", "setup_cfg"]
