"""Datasets: registration, augmentation and mapping. Importing it registers the datasets."""

from dcp_clip.data.camvid import register_camvid
from dcp_clip.data.coco_stuff import register_coco_stuff

register_camvid()
register_coco_stuff()
