"""Datasets: registration, augmentation and mapping. Importing it registers the datasets."""

from dcp_clip.data.camvid import register_camvid

register_camvid()
