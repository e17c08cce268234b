"""Trainer, optimizer and checkpoints."""

from dcp_clip.engine.trainer import Trainer

__all__ = ["Trainer"]
