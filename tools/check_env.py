#!/usr/bin/env python
"""Check the installation and print a report of the environment: the program `dcp-clip check`.

It also runs if DCP-CLIP is not installed.
"""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
sys.path.insert(0, ROOT)

from dcp_clip_cli.check import main  # noqa: E402

sys.path.remove(ROOT)  # the clone itself is no installation

if __name__ == "__main__":
    sys.exit(main())
