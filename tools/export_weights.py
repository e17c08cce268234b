"""Strip a training checkpoint to the weights alone, in half precision.

    python tools/export_weights.py output/camvid/model_final.pth output/camvid_tiny.pth
    python tools/export_weights.py output/mine/model_final.pth output/mine_04.pth \\
        --clip-share 0.4 --config-file output/mine/config.yaml

Optimiser state, schedule and weight averages are left out; matrices and kernels become float16,
vectors (norms, biases, statistics) stay as they are. Loading converts back.

With --clip-share the image tower gets that share of CLIP's own weights, as SOLVER.WISE_FT_ALPHA
gives it at the end of a training: to choose the share for a training that was made without. The
config, best the config.yaml that the training left in its folder, says which CLIP it started from.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dcp_clip.engine.checkpoint import (
    half_precision,
    hook_state,
    interpolate_weights,
    trained_weights,
)
from dcp_clip.utils.arguments import format_error
from dcp_clip.utils.image_io import atomic_write

_TOWER = "backbone."


def export(
    source: Path, target: Path, own: Mapping[str, Tensor] | None = None, share: float = 0.0
) -> tuple[int, int]:
    """Write the weights in `source` to `target`.

    Args:
        source: checkpoint of ``train_net.py``, with a "model" entry.
        target: file to write, in the format that MODEL.WEIGHTS takes.
        own: state of the image tower as CLIP brought it.
        share: of `own` in the tower that is written.

    Returns:
        number of values, number of bytes of the new file.

    Raises:
        SystemExit: when `source` is no such checkpoint, or its tower another than `own`.
    """
    if not source.is_file():
        raise SystemExit(f"{source} does not exist; give a checkpoint of train_net.py.")
    checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    if "model" not in checkpoint:
        raise SystemExit(f"{source} has no 'model' entry; give a checkpoint of train_net.py.")
    weights = dict(trained_weights(checkpoint))
    if own is not None:
        if already := hook_state(checkpoint, "WeightInterpolationHook").get("share"):
            raise SystemExit(
                f"{source} has a share of CLIP's weights already, {already} "
                "(SOLVER.WISE_FT_ALPHA): train with 0.0 to choose another, or leave out "
                "--clip-share."
            )
        # Of a file that was exported once before: mixtures are not made in half precision.
        weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
        tower = {k.removeprefix(_TOWER): v for k, v in weights.items() if k.startswith(_TOWER)}
        if other := [k for k, v in own.items() if k not in tower or tower[k].shape != v.shape]:
            raise SystemExit(
                f"{source} holds another image tower than the config's CLIP ({_TOWER}{other[0]}): "
                "give the config that it was trained with."
            )
        interpolate_weights(tower, own, share)
    weights = half_precision(weights)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        torch.save({"model": weights}, file)
    return sum(value.numel() for value in weights.values()), target.stat().st_size


def read_tower(config_file: str) -> dict[str, Tensor]:
    """The state of a config's image tower, as CLIP brings it.

    Raises:
        SystemExit: when the config names no weights of CLIP, or they cannot be read.
    """
    # Seconds to import, and needed here alone.
    from detectron2.modeling import build_backbone

    from dcp_clip.config import setup_cfg
    from dcp_clip.modeling.clip.loading import CLIPWeightsError

    try:
        cfg = setup_cfg(config_file, ["MODEL.DEVICE", "cpu"])
        if not cfg.MODEL.CLIP.PRETRAINED:
            sys.exit(f"{config_file} names no weights of CLIP (MODEL.CLIP.PRETRAINED) to mix in.")
        return build_backbone(cfg).state_dict()
    except (OSError, KeyError, ValueError, CLIPWeightsError) as error:
        sys.exit(f"{config_file}: {format_error(error)}")


def share(text: str) -> float:
    """A number between 0 and 1."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--clip-share", type=share, metavar="SHARE", help="of CLIP's own weights")
    parser.add_argument(
        "--config-file", metavar="FILE", help="the training's, for --clip-share: says which CLIP"
    )
    args = parser.parse_args()
    if (args.clip_share is None) != (args.config_file is None):
        parser.error("--clip-share and --config-file go together")
    own = read_tower(args.config_file) if args.config_file else None
    values, size = export(args.checkpoint, args.weights, own, args.clip_share or 0.0)
    print(f"{args.weights}: {values:,} values, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
