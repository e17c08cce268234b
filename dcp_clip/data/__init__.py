"""Datasets: registration, augmentation and mapping. Importing it registers the benchmarks."""

from dcp_clip.data.aliases import resolve_dataset_name, resolve_dataset_names
from dcp_clip.data.benchmarks import register_benchmarks
from dcp_clip.data.emoji_scenes.register import register_emoji_scenes
from dcp_clip.data.folders import register_config_folders, register_sem_seg_folder

__all__ = [
    "register_benchmarks",
    "register_config_folders",
    "register_emoji_scenes",
    "register_sem_seg_folder",
    "resolve_dataset_name",
    "resolve_dataset_names",
]

register_benchmarks()
register_emoji_scenes()
