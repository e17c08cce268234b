"""Experiments that need more than train_net.py, e.g. tools/vocabulary_study.py."""
