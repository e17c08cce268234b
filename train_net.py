#!/usr/bin/env python
"""Train or evaluate DCP-CLIP: the program `dcp-clip train`."""

from dcp_clip_cli.train import main

if __name__ == "__main__":
    main()
