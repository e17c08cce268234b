"""Segment millions of images on a cluster with Ray Data (docs/bulk.md)."""
