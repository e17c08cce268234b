#!/usr/bin/env python
"""Open a page in the browser to segment images with any names: the program `dcp-clip app`."""

import sys

from dcp_clip_cli.app import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the page is open
        sys.exit(130)
