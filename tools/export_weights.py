"""Strip a training checkpoint to the weights alone, in half precision.

python tools/export_weights.py output/camvid/model_final.pth dcp_clip/weights/camvid_tiny.pth

Optimiser state, schedule and weight averages are left out; matrices and kernels become float16,
vectors (norms, biases, statistics) stay as they are. Loading converts back.
"""

import argparse
from pathlib import Path

import torch

from dcp_clip.checkpoint import half_precision, trained_weights
from dcp_clip.image_io import atomic_write


def export(source: Path, target: Path) -> tuple[int, int]:
    """Write the weights in `source` to `target`.

    Args:
        source: checkpoint of ``train_net.py``, with a "model" entry.
        target: file to write, in the format that MODEL.WEIGHTS takes.

    Returns:
        number of values, number of bytes of the new file.

    Raises:
        SystemExit: when `source` is no such checkpoint.
    """
    if not source.is_file():
        raise SystemExit(f"{source} does not exist; give a checkpoint of train_net.py.")
    checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    if "model" not in checkpoint:
        raise SystemExit(f"{source} has no 'model' entry; give a checkpoint of train_net.py.")
    weights = half_precision(trained_weights(checkpoint))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        torch.save({"model": weights}, file)
    return sum(value.numel() for value in weights.values()), target.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("weights", type=Path)
    args = parser.parse_args()
    values, size = export(args.checkpoint, args.weights)
    print(f"{args.weights}: {values:,} values, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
