"""Open a page in the browser to segment images with any names (docs/app.md).

    dcp-clip app

In a clone of the repository, `python demo/app.py` is the same program.

The page offers the models whose weights are on this machine. It listens at 127.0.0.1, so only this
machine can reach it, unless --host says otherwise. It has no password.
"""

import argparse
import sys
from collections.abc import Sequence

from dcp_clip_cli.arguments import add_import, input_name


def get_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the arguments; `prog` is the name of the program in its usage line."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    config_help = "offer this model first, in addition to the shipped ones"
    add("--config-file", type=input_name, help=config_help)
    add("--weights", type=input_name, help="sets MODEL.WEIGHTS of --config-file")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="keys of --config-file")
    add_import(parser)
    host_help = "address to listen at; 0.0.0.0 lets other machines use the page (default: "
    add("--host", default="127.0.0.1", help=host_help + "%(default)s)")
    add("--port", type=int, help="default: the first free one from 7860 on")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the program until Ctrl-C."""
    parser = get_parser(prog)
    args = parser.parse_args(argv)
    if (args.weights or args.opts) and not args.config_file:
        parser.error("--weights and --opts belong to --config-file")
    # Late imports, so that --help is fast.
    from dcp_clip.utils.arguments import format_error

    try:
        from dcp_clip.app.models import Models

        own = (args.config_file, args.weights, args.opts) if args.config_file else None
        models = Models.at_hand(own, args.imports)
        models.get(models.titles[0])  # the config and weights first, then the page
        from dcp_clip.app.server import serve

        page = serve(models, args.host, args.port)
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {format_error(error)}")
    print(f"The page is at {page.local_url} (Ctrl-C stops it).", flush=True)
    page.block_thread()
    return 0
