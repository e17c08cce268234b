"""Write the folder of an exported model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from dcp_clip.evaluation.environment import weights_fingerprint
from dcp_clip.export.conversion import (
    OPSET,
    export_image,
    export_labels,
    export_text,
    save_program,
    write_onnx,
)
from dcp_clip.export.programs import ImageProgram, LabelProgram, TextProgram
from dcp_clip.export.quantization import check_can_quantize, quantize_convolutions
from dcp_clip.export.support import ExportError, check_exportable
from dcp_clip.export.tokenizer import tokenizer_json
from dcp_clip.modeling.clip.text_tower import can_truncate
from dcp_clip.runtime.folder import FORMAT
from dcp_clip.utils.atomic_files import atomic_folder, atomic_write
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.category import with_marks

__all__ = ["export_model"]

TORCH = (2, 14)  # earlier versions are not tested
_PACKAGES = ("onnx", "onnxscript", "tokenizers")


def export_model(
    cfg: CfgNode, model: nn.Module, output: Path, photographs: Sequence[Path] | None = None
) -> None:
    """Write the programs as .onnx and .pt2, the tokenizer and ``config.json``.

    The folder gets its name when it is complete.

    Args:
        cfg: config of the model.
        model: the model with its weights, on the CPU.
        output: a folder that does not exist or is empty.
        photographs: image files, to compute convolutions in int8; None for fp32.

    Raises:
        ExportError: if the model cannot be exported, or a package is missing.
        WriteError: if the folder is not empty or cannot be written.
    """
    check_exportable(cfg, model)
    _check_packages()
    if photographs is not None:
        check_can_quantize()  # before the long export
    with atomic_folder(output) as part:
        # The computation is a setting, so runs with and without int8 do not mix their results.
        _write(cfg, model, part, {} if photographs is None else {"int8": True})
        if photographs is not None:
            quantize_convolutions(part, photographs)


def _check_packages() -> None:
    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH:
        raise ExportError(
            f"The export needs PyTorch {TORCH[0]}.{TORCH[1]} or newer, but {torch.__version__} "
            "is installed; the exported folder then runs without PyTorch."
        )
    for name in _PACKAGES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ExportError(
                f"The export needs the package '{name}': pip install {name}"
            ) from None


def _write(cfg: CfgNode, model: nn.Module, folder: Path, computation: dict[str, Any]) -> None:
    encoder = model.text_encoder
    length, shorter = encoder.text.context_length, can_truncate(encoder.text)
    labels, text, image = LabelProgram(), TextProgram(encoder.text), ImageProgram(model)
    for program, exported in (
        (labels, export_labels(labels)),
        (text, export_text(text, length, shorter)),
        (image, export_image(image)),
    ):
        save_program(exported, folder / f"{program.name}.pt2")
        write_onnx(exported, program, folder)
    settings = _settings(cfg, model) | {"shorter_prompts": shorter} | computation
    for name, content in (
        ("tokenizer.json", tokenizer_json(encoder.tokenizer)),
        ("config.json", json.dumps(settings, indent=1, ensure_ascii=False)),
    ):
        with atomic_write(folder / name, "w") as file:
            file.write(content)


def _settings(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    encoder, window = model.text_encoder, model.window
    return {
        "format": FORMAT,
        "model": cfg.MODEL.CLIP.NAME,
        "fingerprint": weights_fingerprint(model),
        "versions": {
            "dcp_clip": metadata.version("dcp_clip"),
            "torch": torch.__version__,
            **{name: metadata.version(name) for name in _PACKAGES},
            "opset": OPSET,
        },
        "input": {
            "channels": "RGB",
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "stride": model.backbone.size_divisibility,
            # Already part of image.onnx, which takes the pixels from 0 to 255.
            "pixel_mean": list(model.backbone.pixel_mean),
            "pixel_std": list(model.backbone.pixel_std),
        },
        "embedding": model.backbone.embed_dim,
        "proposals": model.proposal.num_proposals,
        "templates": list(encoder.templates),
        "synonym_pooling": encoder.synonym_pooling,
        "context_length": encoder.text.context_length,
        "temperature": float(model.temperature),
        "unknown_below": float(cfg.TEST.get("UNKNOWN_BELOW", 0.0)),
        "window": None if window is None else {"size": window.size, "stride": window.stride},
        "vocabulary": _categories(model.vocabulary) if cfg.DATASETS.TRAIN else None,
    }


def _categories(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    return [
        {
            "names": list(names),
            "display_name": vocabulary.display_names[i],
            "color": list(vocabulary.colors[i]),
        }
        for i, names in enumerate(with_marks(vocabulary.synonyms, vocabulary.negatives))
    ]
