#!/usr/bin/env python
"""Segment millions of images on a cluster: the program `dcp-clip segment-many`."""

import sys

from dcp_clip_cli.segment_many import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
