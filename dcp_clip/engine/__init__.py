"""Trainer, optimiser and checkpoints."""

from .trainer import Trainer

__all__ = ["Trainer"]
