"""FLOPs and memory of a training step, traced at full size without computing it.

The model runs forward and backward on fake tensors (PyTorch's ``FakeTensorMode``). Their shapes,
types and lifetimes are real, but they have no data. So ConvNeXt-L at 640 x 640 pixels takes seconds
on a laptop.
"""

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcp_clip.benchmarking.benchmark_model import RandomTextEncoder
from dcp_clip.benchmarking.call_cost import flop_counter
from dcp_clip.engine.muon import hidden_matrices
from dcp_clip.vocabulary import Vocabulary


@dataclass
class StepCost:
    """Cost of a forward pass, and of a backward pass if there is one, in one process.

    Attributes:
        forward_flops, backward_flops: 2 for each multiply-add in convolutions, matrix products and
            attention.
        peak_bytes: the most memory that tensors occupy at one time, without weights, gradients of
            weights and the state of the optimizer.
    """

    forward_flops: int
    backward_flops: int
    peak_bytes: int


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while this context is open.

    Attributes:
        now: bytes of the tensors that exist.
        peak: the highest value of `now`.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, tree_leaves(result)):
            # Views and results that are written in place need no new memory.
            if id(tensor.untyped_storage()) not in inputs:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._storages:
            reference = weakref.ref(storage, lambda _: self._remove(key))
            self._storages[key] = reference, storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _remove(self, key: int) -> None:
        self.now -= self._storages.pop(key, (None, 0))[1]

    def exclude(self, tensor: Tensor) -> None:
        """Stop counting the memory of a tensor."""
        self._remove(id(tensor.untyped_storage()))


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


def trace_step(
    model: nn.Module,
    vocabulary: Vocabulary,
    batch: int,
    size: Sequence[int],
    half: bool,
    backward: bool = True,
) -> StepCost:
    """Trace the forward and the backward pass of the stages, without the losses.

    Args:
        model: in the mode (training or evaluation) to trace; it is not changed.
        vocabulary: C categories.
        batch: B, images in this process.
        size: (H, W) in pixels; padded here as the encoder needs it.
        half: whether to trace under 16-bit autocast. bfloat16 is used; it is as large as float16.
        backward: whether to trace the backward pass too.
    """
    divisor = model.backbone.size_divisibility
    padded = [-(-side // divisor) * divisor for side in size]
    text_encoder = getattr(model, "text_encoder", None)
    if text_encoder is not None and text_encoder.trains:
        # Tokens are cached now, because fake tensors cannot hold them.
        text_encoder.tokenize_vocabulary(vocabulary)
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake_mode):
        fake = copy.deepcopy(model)
    if text_encoder is not None and not text_encoder.trains:
        # A frozen text tower encodes the vocabulary once, before the first step.
        fake.text_encoder = RandomTextEncoder(model.backbone.embed_dim, torch.device("cpu"))
        fake.text_encoder.encode_vocabulary(vocabulary)
    with fake_mode, flop_counter() as flops, PeakMemory() as memory:
        images = torch.empty(batch, 3, *padded)
        with torch.set_grad_enabled(backward):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits, _, refinement = fake.segment(images, [tuple(size)] * batch, vocabulary)
            forward_flops = flops.get_total_flops()
            if backward:
                outputs = [logits]
                if refinement is not None:  # or the mask predictions of MaskQuerySegmentor
                    outputs += [refinement.class_logits, refinement.mask_logits]
                outputs = [x for x in tree_leaves(outputs) if x.requires_grad]
                _exclude_gradients(fake, memory)
                torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
    return StepCost(forward_flops, flops.get_total_flops() - forward_flops, memory.peak)


def _exclude_gradients(model: nn.Module, memory: PeakMemory) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: memory.exclude(p.grad))


def memory_rows(
    model: nn.Module, cfg: CfgNode, step: StepCost, num_gpus: int
) -> list[tuple[str, int, str]]:
    """Rows (what, bytes, basis) of the memory of one GPU in training; the last row is the sum."""
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    # SGD and Muon's matrices have one momentum, AdamW has two averages.
    one_state = hidden_matrices(model) if cfg.SOLVER.OPTIMIZER == "MUON" else set()
    sgd = cfg.SOLVER.OPTIMIZER == "SGD"
    state = sum(p.nbytes * (1 if sgd or p in one_state else 2) for p in trained)
    rows = [
        ("weights", weights, "counted, fp32"),
        ("gradients", gradients, "counted, fp32"),
        ("optimizer state", state, f"counted, {cfg.SOLVER.OPTIMIZER}"),
    ]
    if num_gpus > 1:
        rows.append(("gradient buckets", gradients, "counted, of DistributedDataParallel"))
    if cfg.SOLVER.EMA_DECAY:
        rows.append(("averaged weights", weights, "counted, SOLVER.EMA_DECAY"))
    rows.append(("activations", step.peak_bytes, "traced: the peak, without the losses"))
    rows.append(("CUDA, cuDNN", 2**30, "assumed"))
    return [*rows, ("total", sum(row[1] for row in rows), "without fragmentation")]
