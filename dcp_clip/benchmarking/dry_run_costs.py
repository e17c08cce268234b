"""What a training step costs, traced at full size without computing it.

The model runs forward and backward on fake tensors (PyTorch's `FakeTensorMode`): shapes, types and
lifetimes are real, the numbers do not exist. So ConvNeXt-L at 640 x 640 is traced in seconds on a
laptop. Mixed precision is traced with bfloat16, which has the size of a GPU's float16.
"""

import contextlib
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
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from dcp_clip.benchmarking.subject import RandomText
from dcp_clip.engine.muon import hidden_matrices
from dcp_clip.structures import Proposals, Refinement
from dcp_clip.vocabulary import Vocabulary

GIB = 2**30
# CUDA's context, cuDNN's and cuBLAS' workspaces: assumed, as they depend on card and driver.
CUDA_BYTES = GIB


@dataclass
class StepCost:
    """A training step of one process.

    Attributes:
        forward_flops, backward_flops: 2 for each multiply-add in convolutions, matrix products and
            attention.
        saved_bytes: what is alive between forward and backward.
        peak_bytes: the most that is alive at one time. Neither holds weights, their gradients or
            the optimiser's state.
        made_bytes: of all tensors made on the way.
        kernels: operators that make or fill a tensor.
    """

    forward_flops: int
    backward_flops: int
    saved_bytes: int
    peak_bytes: int
    made_bytes: int
    kernels: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made within it, while they live.

    Attributes:
        now: bytes alive.
        peak: the most bytes that were alive at one time.
        made: bytes ever made.
        kernels: operators that gave something else than a view.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.made = self.kernels = 0
        self._known: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "prim":  # questions, not work: most of what fake tensors call
            return func(*args, **(kwargs or {}))
        inputs = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
        result = func(*args, **(kwargs or {}))
        self.kernels += not func.is_view
        for tensor in filter(_is_tensor, tree_leaves(result)):
            # A view, or a result written in place, is no new memory, whoever made its storage.
            if id(tensor.untyped_storage()) not in inputs:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._drop(key)), storage.nbytes()
            self.now += storage.nbytes()
            self.made += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key, (None, 0))[1]

    def forget(self, tensor: Tensor) -> None:
        """Leave a tensor's memory out of the count from now on."""
        self._drop(id(tensor.untyped_storage()))


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, and two things that it does not know.

    It knows the attention kernels of GPUs only, and takes the gradient of a grouped convolution's
    weight for that of a full one (ConvNeXt's depthwise layers: hundreds of times too much).
    """
    aten = torch.ops.aten

    def attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
        return sdpa_flop_count(query, key, value)

    def attention_backward(grad, query, key, value, *args, out_shape=None, **kwargs) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    def convolution_backward(
        grad, x, w, bias, stride, padding, dilation, transposed, pad, groups, mask, out_shape=None
    ) -> int:
        # The gradients of input and of weight each take as many products as the forward pass.
        return (mask[0] + mask[1]) * conv_flop_count(x, w, grad, transposed=transposed)

    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
        aten.convolution_backward: convolution_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


def trace_step(
    model: nn.Module,
    vocabulary: Vocabulary,
    batch: int,
    size: Sequence[int],
    half: bool,
    backward: bool = True,
) -> StepCost:
    """Trace the stages' forward and backward pass, without the losses.

    Args:
        model: in the mode (training or evaluation) that is to be traced; it is not changed.
        vocabulary: C categories.
        batch: B, images of one process.
        size: (H, W) in pixels; padded here to what the encoder needs.
        half: under 16-bit autocast.
        backward: also the backward pass.
    """
    divisor = model.backbone.size_divisibility
    padded = [-(-side // divisor) * divisor for side in size]
    fake_mode, flops, memory = (
        FakeTensorMode(allow_non_fake_inputs=True),
        flop_counter(),
        LiveBytes(),
    )
    text = _text_encoder(model, vocabulary)
    with FakeCopyMode(fake_mode):
        fake = copy.deepcopy(model)
    if text is not None:
        fake.text_encoder = text
    with contextlib.ExitStack() as stack:
        # In evaluation nn.MultiheadAttention takes a fused operator that no counter sees into.
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(fake_mode)
        images = torch.empty(batch, 3, *padded)
        stack.enter_context(flops)
        stack.enter_context(memory)
        stack.enter_context(torch.set_grad_enabled(backward))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            maps, _, refinement = fake.segment(images, [tuple(size)] * batch, vocabulary, None)
        forward, saved = flops.get_total_flops(), memory.now
        outputs = list(maps.values())
        if refinement is not None:
            outputs += [refinement.class_logits, refinement.mask_logits]
        if backward:
            _leave_out_gradients(fake, memory)
            trained = [x for x in outputs if x.requires_grad]
            torch.autograd.backward(trained, [torch.ones_like(x) for x in trained])
    backward_flops = flops.get_total_flops() - forward
    return StepCost(forward, backward_flops, saved, memory.peak, memory.made, memory.kernels)


def _text_encoder(model: nn.Module, vocabulary: Vocabulary) -> nn.Module | None:
    """What stands in for the text tower, if anything.

    A frozen tower has done its work before the first step: random features take its place. One that
    trains is traced, and looks at the names now, as it could not read fake ones.
    """
    encoder = getattr(model, "text_encoder", None)
    if encoder is None:
        return None
    if encoder.trains:
        encoder.tokenize_vocabulary(vocabulary)
        return None
    text = RandomText(model.backbone.embed_dim, torch.device("cpu"))
    text.encode_vocabulary(vocabulary)
    return text


def _leave_out_gradients(model: nn.Module, memory: LiveBytes) -> None:
    """Weights' gradients are counted apart, exactly."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: memory.forget(p.grad))


def trace_losses(
    model: nn.Module, cfg: CfgNode, num_categories: int, batch: int, size: Sequence[int]
) -> int:
    """The most bytes that the losses take on the maps' full size; computed, on random maps."""
    k = min(cfg.MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS, num_categories)
    if cfg.MODEL.META_ARCHITECTURE != "DCPCLIP":
        k = num_categories
    grid = [-(-side // 4) for side in size]
    ids = torch.arange(k).expand(batch, k)
    proposals = Proposals(ids, torch.zeros(batch, k), torch.ones_like(ids, dtype=torch.bool), ids)
    labels = torch.randint(0, num_categories, (batch, *size))
    maps = {name: torch.zeros(batch, k, *grid, requires_grad=True) for name in ("fine", "final")}
    maps = {"coarse": torch.zeros(batch, k, 8, 8, requires_grad=True)} | maps
    logits = (
        torch.zeros(batch, k, requires_grad=True),
        torch.zeros(batch, k, k, requires_grad=True),
    )
    with LiveBytes() as memory:
        losses = model.criterion(maps, Refinement(*logits), proposals, labels, num_categories)
        sum(losses.values()).backward()
    return memory.peak


def _optimizer_bytes(model: nn.Module, optimizer: str) -> int:
    once = hidden_matrices(model) if optimizer == "MUON" else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(p.nbytes * (1 if optimizer == "SGD" or p in once else 2) for p in trained)


def memory_table(
    model: nn.Module, cfg: CfgNode, step: StepCost, loss_bytes: int, num_gpus: int
) -> list[tuple[str, int, str]]:
    """Rows (what, bytes, basis) of a GPU's memory in training; the last one is their sum."""
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    averages = {"SGD": "momentum", "ADAMW": "two averages a weight"}.get(
        cfg.SOLVER.OPTIMIZER, "momentum of matrices, two averages of the rest"
    )
    rows = [
        ("weights", weights, "counted, fp32"),
        ("gradients", trained, "counted, fp32"),
        (
            "optimiser's state",
            _optimizer_bytes(model, cfg.SOLVER.OPTIMIZER),
            f"counted: {averages}",
        ),
    ]
    if num_gpus > 1:
        rows.append(("gradient buckets", trained, "counted: DistributedDataParallel's copy"))
    if cfg.SOLVER.EMA_DECAY:
        rows.append(("averaged weights", weights, "counted: SOLVER.EMA_DECAY"))
    peak = max(step.peak_bytes, step.saved_bytes + loss_bytes)
    rows.append(
        ("activations", peak, "traced at full size: the peak, temporaries and losses included")
    )
    rows.append(("CUDA, cuDNN", CUDA_BYTES, "assumed"))
    return [*rows, ("total", sum(row[1] for row in rows), "without fragmentation, often a tenth")]
