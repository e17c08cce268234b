"""Which of CLIP's public weights are already on this machine."""

import os

import open_clip
from huggingface_hub import try_to_load_from_cache

__all__ = ["is_cached"]

# The files that open_clip looks for, see `open_clip.pretrained.download_pretrained_from_hf`.
_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def is_cached(name: str, tag: str) -> bool:
    """Return whether weights are in the cache of Hugging Face, so that nothing is downloaded.

    Args:
        name: model name of open_clip, for example "ViT-B-16-quickgelu".
        tag: name of the weights, for example "openai". An unknown one is not cached.
    """
    repository, file = os.path.split(open_clip.get_pretrained_cfg(name, tag).get("hf_hub", ""))
    files = (file,) if file else _FILES
    return bool(repository) and any(
        isinstance(try_to_load_from_cache(repository, each), str) for each in files
    )
