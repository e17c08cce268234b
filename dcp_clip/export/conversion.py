"""Export programs with ``torch.export``, and convert them to ONNX."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from dcp_clip.export.programs import ImageProgram, LabelProgram, TextProgram
from dcp_clip.export.support import ExportError

__all__ = ["export_image", "export_labels", "export_text", "save_program", "write_onnx"]

OPSET = 20
_RANDOM_SIZES = 10  # with which each equation between sizes is checked
# Sizes of the example inputs. No two are equal and none is 1, so that no input is mistaken for
# another or for a constant.
_BATCH, _NAMES, _CATEGORIES, _SYNONYMS, _CELLS = 2, 70, 40, 3, (9, 13)


def export_image(program: ImageProgram) -> ExportedProgram:
    """Export the model; B, H, W, N, C and S stay open.

    Raises:
        ExportError: if PyTorch cannot export a part of the model.
    """
    backbone = program.model.backbone
    # The sides are no multiples of the stride, so that the padding becomes part of the program.
    side = [cells * backbone.size_divisibility - 3 for cells in _CELLS]
    image = torch.zeros(_BATCH, 3, *side, dtype=torch.uint8)
    text_features = torch.randn(_NAMES, backbone.embed_dim)
    rows = torch.arange(_CATEGORIES * _SYNONYMS).view(_CATEGORIES, _SYNONYMS) % _NAMES
    dynamic = Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic}, {0: dynamic, 1: dynamic})
    return _export(program, (image, text_features, rows), shapes)


def export_text(program: TextProgram, length: int, shorter: bool) -> ExportedProgram:
    """Export the text tower; the number of prompts stays open.

    Args:
        program: the text tower.
        length: the context length.
        shorter: whether the number of tokens stays open too, up to the context length.

    Raises:
        ExportError: as :func:`export_image`.
    """
    # AUTO, because the text tower treats a full context as a case of its own. Both cases compute
    # the same, so the program in ONNX, which has no checks, also takes a full context.
    shapes = {0: Dim.DYNAMIC} | ({1: Dim.AUTO} if shorter else {})
    size = (5, 12 if shorter else length)
    return _export(program, (torch.zeros(size, dtype=torch.int64),), (shapes,))


def export_labels(program: LabelProgram) -> ExportedProgram:
    """Export the upsampling of logits to labels; all sizes stay open."""
    dynamic, index = Dim.DYNAMIC, torch.arange
    rows, columns = (index(6), index(6), torch.rand(6)), (index(7), index(7), torch.rand(7))
    inputs = (torch.randn(5, 8, 9), *rows, *columns, torch.tensor(1.0))
    shapes = ({0: dynamic, 1: dynamic, 2: dynamic}, *({0: dynamic} for _ in range(6)), {})
    return _export(program, inputs, shapes)


def _export(program: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple) -> ExportedProgram:
    # No other operator: PyTorch would copy the weights of a linear layer for each token.
    aten = torch.ops.aten
    pooling = (aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
    table = {operator: _adaptive_average for operator in pooling}
    try:
        with torch.no_grad(), _quiet(), _plain_attention():
            exported = torch.export.export(
                program.eval(),
                inputs,
                dynamic_shapes=shapes,
                # A size that PyTorch cannot prove is checked when the program runs.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            exported = exported.run_decompositions(table)
    except Exception as error:  # torch.export raises many types of errors
        raise ExportError(f"PyTorch cannot export this model: {_first_line(error)}") from error
    _check_sizes(exported)
    # The weights do not train. With gradients, PyTorch computes attention in another layout in
    # memory, for which the program is wrong.
    for name, weight in list(exported.state_dict.items()):
        if isinstance(weight, nn.Parameter):
            exported.state_dict[name] = nn.Parameter(weight.detach(), requires_grad=False)
    return exported


def _check_sizes(exported: ExportedProgram) -> None:
    """Check that no size was fixed to that of the example inputs.

    A program for all sizes has only equations between sizes that hold for all of them.

    Raises:
        ExportError: if an equation does not hold for random sizes.
    """
    draw = random.Random(0)
    for node in _size_checks(exported):
        condition = getattr(getattr(node.args[0], "meta", {}).get("val"), "node", None)
        equation = getattr(condition, "expr", None)
        if not isinstance(equation, sympy.Eq):
            continue
        for _ in range(_RANDOM_SIZES):
            sizes = {symbol: draw.randint(2, 2000) for symbol in equation.free_symbols}
            if equation.xreplace({k: sympy.Integer(v) for k, v in sizes.items()}) == sympy.false:
                raise ExportError(
                    f"A part of this model works for some sizes only ({equation}), so PyTorch "
                    "cannot export it for all sizes."
                )


def _size_checks(exported: ExportedProgram) -> list[torch.fx.Node]:
    assertion = torch.ops.aten._assert_scalar.default
    return list(exported.graph_module.graph.find_nodes(op="call_function", target=assertion))


def write_onnx(exported: ExportedProgram, program: nn.Module, folder: Path) -> None:
    """Convert a program to ONNX, with the names of its inputs and outputs.

    The image program is written as three files, which share the weights in image.onnx.data:
    image.onnx is the whole model. encoder.onnx is the image encoder, and head.onnx the rest
    without the label map, so that an image is encoded once for several vocabularies.

    Args:
        exported: the program.
        program: the module that was exported.
        folder: where to write NAME.onnx.

    Raises:
        ExportError: if an operator has no counterpart in ONNX.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    try:
        with torch.no_grad(), _quiet():
            converted = torch.onnx.export(
                exported,
                input_names=program.inputs,
                output_names=program.outputs,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"ONNX cannot express this model: {_first_line(error)}") from error
    ClearMetadataAndDocStringPass()(converted.model)  # traces with paths of this machine
    if isinstance(program, ImageProgram):
        _write_image(converted.model, program, folder)
    else:
        converted.save(folder / f"{program.name}.onnx")


def _write_image(model: Any, program: ImageProgram, folder: Path) -> None:
    """Write image.onnx, encoder.onnx and head.onnx."""
    import onnx_ir
    from onnx_ir.convenience import extract

    path = folder / "image.onnx"
    onnx_ir.save(model, path, external_data=f"{path.name}.data")
    model = onnx_ir.load(path)
    # The head computes the image itself and the sizes of its features from its input "image".
    head = extract(model.graph, (*program.inputs, *program.features), program.unlabelled)
    for value in [x for x in head.inputs if not x.uses()]:
        head.inputs.remove(value)
    features = [x.name for x in head.inputs if x.name in program.features]
    for name, graph in (
        ("encoder", extract(model.graph, ("image",), features)),
        ("head", head),
        ("image", extract(model.graph, program.inputs, program.results)),
    ):
        part = onnx_ir.Model(graph, ir_version=model.ir_version)
        onnx_ir.save(part, folder / f"{name}.onnx")


def save_program(exported: ExportedProgram, path: Path) -> None:
    """Write a program as a file .pt2, without its checks of sizes.

    PyTorch adds a check for each decision about the layout of a tensor in memory, such as that two
    strides differ. The layout does not change the result, but the checks refuse many sizes. It also
    assumes that no size is 1, although the program is right for 1 too, as in ONNX.
    """
    graph = exported.graph_module.graph
    for node in _size_checks(exported):
        graph.erase_node(node)
    graph.eliminate_dead_code()
    exported.graph_module.recompile()
    for symbol, sizes in exported.range_constraints.items():
        exported.range_constraints[symbol] = ValueRanges(1, sizes.upper)
    with _quiet():
        torch.export.save(exported, path)


def _adaptive_average(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Adaptive average pooling of (..., H, W) as two matrix products, for sizes that stay open."""
    rows, columns = (
        _averages(length, cells, x) for length, cells in zip(x.shape[-2:], output_size, strict=True)
    )
    return rows @ x @ columns.mT


def _averages(length: int, cells: int, like: Tensor) -> Tensor:
    """(cells, length): the weight of each position in the average of each cell."""
    cell = torch.arange(cells, device=like.device)[:, None]
    start, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    position = torch.arange(length, device=like.device)
    return ((position >= start) & (position < end)).to(like.dtype) / (end - start)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the fused operator of nn.MultiheadAttention, which ONNX does not have."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of the exporters on their own progress."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return f"{type(cause).__name__}: {lines[0][:300]}"
