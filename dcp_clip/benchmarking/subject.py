"""What `benchmark.py` measures: a model's encoder, its whole forward, a training step, its text."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function
from tqdm import tqdm

from dcp_clip.benchmarking.meters import seconds
from dcp_clip.engine import Trainer
from dcp_clip.structures import TextFeatures
from dcp_clip.vocabulary import Vocabulary

SYLLABLES = [c + v for c, v in product("bdfgklmnprstvz", "aeiou")]
LABELLED = 16  # categories of a training image; most of COCO-Stuff have fewer
WARM_UPS = 2
SAMPLE_NAMES = 32  # encoded to estimate the text tower's time a name


class RandomText(nn.Module):
    """Stands in for the model's text encoder: random unit vectors, one a category, kept."""

    def __init__(self, embed_dim: int, device: torch.device):
        super().__init__()
        self.embed_dim, self.device = embed_dim, device
        self._cache: dict[Vocabulary, TextFeatures] = {}

    def encode_vocabulary(self, vocabulary: Vocabulary) -> TextFeatures:
        """As `TextEncoder.encode_vocabulary`; the same categories get the same vectors."""
        if vocabulary not in self._cache:
            generator = torch.Generator().manual_seed(0)
            vectors = torch.randn(len(vocabulary), self.embed_dim, generator=generator)
            rows = torch.arange(len(vocabulary))[:, None].to(self.device)
            embeddings = F.normalize(vectors, dim=1).to(self.device)
            self._cache[vocabulary] = TextFeatures(embeddings, rows)
        return self._cache[vocabulary]


class Replay(nn.Module):
    """Stands in for the backbone: what it answers is computed once for each size of image, as
    sliding windows have sizes of their own."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.size_divisibility = backbone.size_divisibility
        self._backbone = backbone
        self._features: dict[torch.Size, dict[str, Tensor]] = {}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if images.shape not in self._features:
            self._features[images.shape] = self._backbone(images)
        return self._features[images.shape]


class Subject:
    """A model under measurement: its encoder and its whole forward as functions."""

    def __init__(self, cfg: CfgNode, size: Sequence[int], output_size: Sequence[int]):
        self.cfg, self.model = cfg, build_model(cfg).eval()
        self.name = cfg.MODEL.CLIP.NAME
        self.weights = cfg.MODEL.CLIP.PRETRAINED or "random weights"
        self.bf16 = cfg.MODEL.DCP_CLIP.BF16
        self.device = self.model.device
        parameters = list(self.model.parameters())
        self.parameters = {
            "total": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "clip_image_tower": sum(p.numel() for p in self.model.backbone.parameters()),
        }
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        self.input = {"image": image, "height": output_size[0], "width": output_size[1]}
        divisor = self.model.backbone.size_divisibility
        padded = [-(-side // divisor) * divisor for side in size]
        self.pixels = torch.randn(1, 3, *padded, generator=generator).to(self.device)

    @property
    def title(self) -> str:
        """CLIP's name, weights, image size, precision and device."""
        height, width = self.input["image"].shape[-2:]
        precision = "bf16 autocast" if self.bf16 else "fp32"
        return (
            f"{self.name}, {self.weights}; height x width {height} x {width}, {precision}, "
            f"{self.device}"
        )

    def encoder(self) -> dict[str, Tensor]:
        """CLIP's image encoder alone on one image, under the model's own precision."""
        return self.encoder_of(1)()

    def whole(self, vocabulary: Vocabulary) -> Callable[[], tuple[dict, Tensor]]:
        """The whole forward for one image and this vocabulary, to the category of every pixel."""

        def run() -> tuple[dict, Tensor]:
            (output,) = self.model([self.input | {"vocabulary": vocabulary}])
            return output, output["sem_seg"].argmax(dim=0)

        return run

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Within, the encoder costs nothing from the second call on: it answers as at the first."""
        backbone = self.model.backbone
        self.model.backbone = Replay(backbone)
        try:
            yield
        finally:
            self.model.backbone = backbone

    def train_step(self, batch: int, vocabulary: Vocabulary) -> Callable[[], None]:
        """A training step on `batch` images of random pixels, with labels in patches of 32 pixels:
        LABELLED categories at most, as each of them is proposed."""
        optimizer = Trainer.build_optimizer(self.cfg, self.model)
        height, width = self.input["image"].shape[-2:]
        generator = torch.Generator().manual_seed(0)
        patches = (-(-height // 32), -(-width // 32))
        records = []
        for _ in range(batch):
            labels = torch.randint(0, min(len(vocabulary), LABELLED), patches, generator=generator)
            labels = labels.repeat_interleave(32, 0).repeat_interleave(32, 1)[:height, :width]
            image = self.input["image"].roll(len(records), dims=2)
            records.append({"image": image, "sem_seg": labels, "vocabulary": vocabulary})

        def step() -> None:
            self.model.train()
            with torch.enable_grad():
                loss = sum(self.model(records).values())
                with record_function("stage: backward"):
                    loss.backward()
                with record_function("stage: optimiser"):
                    optimizer.step()
                    optimizer.zero_grad()
            self.model.eval()

        return step

    def encoder_of(self, batch: int) -> Callable[[], dict[str, Tensor]]:
        """CLIP's image encoder alone on `batch` images."""
        pixels = self.pixels.expand(batch, -1, -1, -1).contiguous()

        def run() -> dict[str, Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                return self.model.backbone(pixels)

        return run

    def time_text(self, vocabularies: Sequence[Vocabulary], random: bool) -> list[float]:
        """Seconds to encode each vocabulary; with `random` estimated, and RandomText installed."""
        encoder, device = self.model.text_encoder, self.device
        encoder.encode_vocabulary(Vocabulary(["a warm-up"]))
        if not random:
            return [seconds(partial(encoder.encode_vocabulary, v), device) for v in vocabularies]
        sample = make_vocabulary(SAMPLE_NAMES)
        each = seconds(partial(encoder.encode_vocabulary, sample), device) / SAMPLE_NAMES
        self.model.text_encoder = RandomText(self.model.backbone.embed_dim, device)
        return [each * len(v) for v in vocabularies]


def alternate(subject: Subject, functions: Sequence[Callable], repeats: int) -> list[list[float]]:
    """Seconds of each function, called in turns after a warm-up."""
    times: list[list[float]] = [[] for _ in functions]
    for round_ in tqdm(range(WARM_UPS + repeats), desc=subject.name, unit="round"):
        for function, kept in zip(functions, times):
            spent = seconds(function, subject.device)
            if round_ >= WARM_UPS:
                kept.append(spent)
    return times


def time_text_cache(subject: Subject, vocabulary: Vocabulary) -> tuple[float, float]:
    """Seconds to encode a vocabulary, and to read it from the disk cache in a second start."""
    encoder = subject.model.text_encoder
    encoder.encode_vocabulary(Vocabulary(["a warm-up"]))
    with tempfile.TemporaryDirectory() as folder:
        encoder.cache_dir = folder
        times = []
        for _ in range(2):
            encoder.clear_cache()
            times.append(seconds(partial(encoder.encode_vocabulary, vocabulary), subject.device))
        encoder.cache_dir = ""
        encoder.clear_cache()
    return times[0], times[1]


def make_vocabulary(count: int) -> Vocabulary:
    """`count` distinct pseudo-words; a smaller vocabulary is the beginning of a larger one."""
    names = []
    for number in range(count):
        word = ""
        for _ in range(4):  # 70**4 words
            number, syllable = divmod(number, len(SYLLABLES))
            word = SYLLABLES[syllable] + word
        names.append(word)
    return Vocabulary(names)
