#!/usr/bin/env python
"""Segment photographs with any list of category names: the program `dcp-clip segment`."""

import sys

from dcp_clip_cli.segment import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first image
        sys.exit(130)
