"""Data sets: registration, augmentation and mapping. Importing this registers the benchmarks."""

from dcp_clip.data.aliases import resolve_dataset_name, resolve_dataset_names
from dcp_clip.data.builtin import register_benchmarks
from dcp_clip.data.custom import register_config_folders, register_sem_seg_folder
from dcp_clip.data.vocabularies import dataset_vocabulary, parse_vocabulary

__all__ = [
    "dataset_vocabulary",
    "parse_vocabulary",
    "register_benchmarks",
    "register_config_folders",
    "register_sem_seg_folder",
    "resolve_dataset_name",
    "resolve_dataset_names",
]

register_benchmarks()
