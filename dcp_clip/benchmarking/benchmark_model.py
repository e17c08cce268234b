"""The model that tools/benchmark.py measures, and the calls whose cost it compares."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import islice, product

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from dcp_clip.engine.optimizer import build_optimizer
from dcp_clip.structures import TextFeatures
from dcp_clip.vocabulary import Vocabulary

_SYLLABLES = [c + v for c, v in product("bdfgklmnprstvz", "aeiou")]
# Categories in a training image at most; most images of COCO-Stuff have fewer.
_LABELLED_CATEGORIES = 16
_PATCH = 32  # pixels


def make_vocabulary(size: int) -> Vocabulary:
    """`size` distinct pseudo-words; a smaller vocabulary is the beginning of a larger one."""
    return Vocabulary(["".join(word) for word in islice(product(_SYLLABLES, repeat=4), size)])


class RandomTextEncoder(nn.Module):
    """Replaces the text encoder: one random unit vector for each category, cached."""

    trains = False

    def __init__(self, embed_dim: int, device: torch.device):
        super().__init__()
        self.embed_dim, self.device = embed_dim, device
        self._cache: dict[Vocabulary, TextFeatures] = {}

    def encode_vocabulary(self, vocabulary: Vocabulary) -> TextFeatures:
        """As ``TextEncoder.encode_vocabulary``; equal vocabularies get equal features."""
        if vocabulary not in self._cache:
            generator = torch.Generator().manual_seed(0)
            vectors = torch.randn(len(vocabulary), self.embed_dim, generator=generator)
            rows = torch.arange(len(vocabulary))[:, None].to(self.device)
            embeddings = F.normalize(vectors, dim=1).to(self.device)
            self._cache[vocabulary] = TextFeatures(embeddings, rows)
        return self._cache[vocabulary]


class CachedBackbone(nn.Module):
    """Replaces the backbone: computes the features once for each image size and returns them again.

    Sliding windows have sizes of their own.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.size_divisibility = backbone.size_divisibility
        self._backbone = backbone
        self._features: dict[torch.Size, dict[str, Tensor]] = {}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if images.shape not in self._features:
            self._features[images.shape] = self._backbone(images)
        return self._features[images.shape]


class BenchmarkModel:
    """A model in evaluation mode with random images, and its parts as functions to measure."""

    def __init__(self, cfg: CfgNode, size: Sequence[int], output_size: Sequence[int]):
        """
        Args:
            cfg: config of the model.
            size: (H, W) of the images in pixels.
            output_size: (H, W) of the label map in pixels.
        """
        self.cfg, self.model = cfg, build_model(cfg).eval()
        self.device = self.model.device
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        self.input = {"image": image, "height": output_size[0], "width": output_size[1]}
        divisor = self.model.backbone.size_divisibility
        padded = [-(-side // divisor) * divisor for side in size]
        self._pixels = torch.randn(1, 3, *padded, generator=generator).to(self.device)

    def encoder(self, batch: int = 1) -> Callable[[], dict[str, Tensor]]:
        """The forward pass of CLIP's image encoder alone, on `batch` images.

        It is without a proxy and without test-time augmentation.
        """
        backbone = copy(self.model.backbone)
        backbone.proxy = backbone.views = None
        pixels = self._pixels.expand(batch, -1, -1, -1).contiguous()

        def run() -> dict[str, Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.model.bf16):
                return backbone(pixels)

        return run

    def forward(self, vocabulary: Vocabulary, bf16: bool | None = None) -> Callable[[], Tensor]:
        """Return the whole forward pass for one image, up to the category of every pixel.

        Args:
            vocabulary: the categories.
            bf16: whether to use bfloat16 autocast; default: as the model does now.
        """
        bf16 = self.model.bf16 if bf16 is None else bf16

        def run() -> Tensor:
            self.model.bf16 = bf16
            (output,) = self.model([self.input | {"vocabulary": vocabulary}])
            return output["sem_seg"].argmax(dim=0)

        return run

    def num_proposals(self, vocabulary: Vocabulary) -> int:
        """K, the number of categories that the decoders see."""
        (output,) = self.model([self.input | {"vocabulary": vocabulary}])
        return len(output["proposals"]["ids"])

    @contextmanager
    def cached_backbone(self) -> Iterator[None]:
        """While this context is open, the image encoder costs nothing after its first call."""
        backbone = self.model.backbone
        self.model.backbone = CachedBackbone(backbone)
        try:
            yield
        finally:
            self.model.backbone = backbone

    def use_random_text(self) -> None:
        """Replace the text encoder by random features, which cost the model the same."""
        embed_dim = self.model.backbone.embed_dim
        self.model.text_encoder = RandomTextEncoder(embed_dim, self.device)

    def train_step(self, batch: int, vocabulary: Vocabulary) -> Callable[[], None]:
        """Return a training step on `batch` images, whose labels are patches of <= 16 categories.

        Raises:
            ValueError: if nothing in the model trains.
        """
        optimizer = build_optimizer(self.cfg, self.model)
        height, width = self.input["image"].shape[-2:]
        highest = min(len(vocabulary), _LABELLED_CATEGORIES)
        generator = torch.Generator().manual_seed(0)
        records = []
        for i in range(batch):
            patches = (-(-height // _PATCH), -(-width // _PATCH))
            labels = torch.randint(0, highest, patches, generator=generator)
            labels = labels.repeat_interleave(_PATCH, 0).repeat_interleave(_PATCH, 1)
            image, labels = self.input["image"].roll(i, dims=2), labels[:height, :width]
            records.append({"image": image, "sem_seg": labels, "vocabulary": vocabulary})

        def step() -> None:
            self.model.train()
            with torch.enable_grad():
                loss = sum(self.model(records).values())
                with record_function("stage: backward"):
                    loss.backward()
                with record_function("stage: optimizer"):
                    optimizer.step()
                    optimizer.zero_grad()
            self.model.eval()

        return step
