"""Write and check the folder of a model: config, weights, names, calibration and model card.

A folder from somebody else is data: nothing in it can run code or name a file outside of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from dcp_clip.config import get_cfg, setup_cfg
from dcp_clip.config.files import read_yaml
from dcp_clip.config.merge import option_list
from dcp_clip.engine.checkpoints.calibration import calibration_file, write_temperature
from dcp_clip.hub.card import model_card
from dcp_clip.modeling.clip.loading import pixel_stats, weights_file
from dcp_clip.utils.atomic_files import atomic_folder, atomic_write
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import read_categories
from dcp_clip.vocabulary.category import with_marks
from dcp_clip.vocabulary.prompts import is_template_set, load_templates

__all__ = ["CARD", "FILES", "check_folder", "read_config", "read_names", "write_folder"]

CONFIG, WEIGHTS, NAMES, CARD = "config.yaml", "model.safetensors", "names.json", "README.md"
TEMPLATES = "templates.txt"  # only if the prompt templates are those of a file
CALIBRATION = calibration_file(WEIGHTS).name  # only if the weights are calibrated
# All files that are written, downloaded and read.
FILES = (CONFIG, WEIGHTS, NAMES, CARD, CALIBRATION, TEMPLATES)
_REQUIRED = (CONFIG, WEIGHTS, NAMES)
_TEMPLATES_KEY = "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES"
# A tag of timm or a file. Its weights are not part of the model's weights.
_PROXY_KEY = "MODEL.CLIP.PROXY.PRETRAINED"
# Keys that name files, folders or data sets of a machine. They have their defaults in a folder.
_LOCAL_KEYS = (
    "MODEL.WEIGHTS",
    "MODEL.CLIP.PRETRAINED",
    "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR",
    "DATASETS.SEM_SEG_FOLDERS",
    "DATASETS.TRAIN_REPEAT_FACTOR",
    "SOLVER.CHECKPOINT_COPY",
    "OUTPUT_DIR",
)
# A file that was cut off has no VERSION, because the keys are sorted.
_SECTIONS = ("INPUT", "MODEL", "TEST", "VERSION")
_OTHER_WEIGHTS = (".pth", ".pt", ".bin", ".pkl", ".ckpt")


def write_folder(
    folder: str | Path,
    cfg: CfgNode,
    model: nn.Module,
    vocabulary: Vocabulary,
    results: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> None:
    """Write a model into a folder, which gets its name when it is complete.

    A matrix whose values fit into float16 is stored so; loading gives the same float32 values.

    Args:
        folder: a folder that does not exist or is empty.
        cfg: config of the model.
        model: the model with its weights.
        vocabulary: the default vocabulary.
        results: the evaluation for the model card, see `dcp_clip.hub.card.read_results`.
        source: name of the repository for the model card; default: the folder.

    Raises:
        ValueError: if the model needs more than such a folder contains.
        WriteError: if the folder is not empty or cannot be written.
    """
    folder = Path(folder)
    if model.needs_train_names:
        raise ValueError(
            f"{type(model).__name__} needs the categories of DATASETS.TRAIN, which a model folder "
            "does not contain: share the checkpoint and its config instead."
        )
    _check_pixel_stats(cfg, model)
    if weights_file(cfg.MODEL.CLIP.PROXY.PRETRAINED) is not None:
        raise ValueError(
            f"{_PROXY_KEY} is the file '{cfg.MODEL.CLIP.PROXY.PRETRAINED}', whose weights a model "
            "folder cannot contain: use a tag of timm, or share the checkpoint and its config."
        )
    with atomic_folder(folder) as part:
        _write_config(part, cfg)
        state = {name: _compact(value) for name, value in model.state_dict().items()}
        with atomic_write(part / WEIGHTS) as file:
            file.write(safetensors.torch.save(state, {"format": "pt"}))
        if model.temperature != 1:
            fitted = _fitted_on(cfg.MODEL.WEIGHTS)
            write_temperature(str(part / WEIGHTS), model, model.temperature, fitted)
        card = model_card(source or folder.name, cfg, model, vocabulary, results)
        for name, text in ((NAMES, _names_json(vocabulary)), (CARD, card)):
            with atomic_write(part / name, "w") as file:
                file.write(text)


def _check_pixel_stats(cfg: CfgNode, model: nn.Module) -> None:
    """Check that a model without MODEL.CLIP.PRETRAINED, as in the folder, has the same pixels."""
    own = pixel_stats(cfg.MODEL.CLIP.NAME, None)
    for name in ("mean", "std"):
        found = getattr(model, f"pixel_{name}").flatten().cpu() / 255
        if not torch.allclose(found, torch.tensor(own[name]), atol=1e-4):
            raise ValueError(
                f"MODEL.CLIP.PRETRAINED '{cfg.MODEL.CLIP.PRETRAINED}' has another {name} of the "
                f"pixels than MODEL.CLIP.NAME '{cfg.MODEL.CLIP.NAME}' has by default, and a model "
                "folder cannot contain it: share the checkpoint and its config instead."
            )


def _compact(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    if value.dtype == torch.float32 and value.dim() >= 2:
        half = value.half()
        if torch.equal(half.float(), value):
            return half
    return value.clone()  # tensors of a file may not share memory


def _write_config(folder: Path, cfg: CfgNode) -> None:
    cfg, default = cfg.clone(), get_cfg()
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    cfg.MODEL.DEVICE = default.MODEL.DEVICE
    for key in _LOCAL_KEYS:
        node, _, last = key.rpartition(".")
        _find(cfg, node)[last] = _find(default, key)
    if not is_template_set(cfg.MODEL.DCP_CLIP.VOCABULARY.TEMPLATES):
        templates = load_templates(cfg.MODEL.DCP_CLIP.VOCABULARY.TEMPLATES)
        cfg.MODEL.DCP_CLIP.VOCABULARY.TEMPLATES = TEMPLATES
        with atomic_write(folder / TEMPLATES, "w") as file:
            file.write("\n".join(templates) + "\n")
    with atomic_write(folder / CONFIG, "w") as file:
        file.write(cfg.dump())


def _find(node: Any, key: str) -> Any:
    """Return the value of a key with dots; None if there is none."""
    for part in filter(None, key.split(".")):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _fitted_on(weights: str) -> Sequence[str]:
    with suppress(OSError, ValueError, KeyError):
        return json.loads(calibration_file(weights).read_text(encoding="utf-8"))["fitted on"]
    return ()


def _names_json(vocabulary: Vocabulary) -> str:
    categories = [
        {
            "name": name,
            "synonyms": synonyms,
            "color": list(vocabulary.colors[i]),
            "official": vocabulary.display_names[i],
        }
        for i, (name, *synonyms) in enumerate(with_marks(vocabulary.synonyms, vocabulary.negatives))
    ]
    return json.dumps({"categories": categories}, indent=1, ensure_ascii=False) + "\n"


def read_names(folder: Path) -> Vocabulary:
    """Return the default vocabulary of a model folder.

    Raises:
        VocabularyError: if names.json is invalid.
    """
    categories = read_categories(folder / NAMES)
    return Vocabulary(
        [category.all_names for category in categories],
        display_names=[category.official for category in categories],
        colors=[category.color for category in categories],
        warn_shared=False,
    )


def read_config(folder: Path, opts: Sequence[str] = (), imports: Sequence[str] = ()) -> CfgNode:
    """Check a model folder, and return its config with the path of its weights.

    Args:
        folder: a folder of `write_folder`.
        opts: alternating config keys and values that override the file.
        imports: modules of your own to import first, see `dcp_clip.setup_cfg`.

    Raises:
        FileNotFoundError, ValueError: see `check_folder`.
        KeyError: if the config contains an unknown key.
    """
    content = check_folder(folder)
    opts = [*option_list(opts), "MODEL.WEIGHTS", str(folder / WEIGHTS)]
    if _find(content, _TEMPLATES_KEY) == TEMPLATES:
        opts = [_TEMPLATES_KEY, str(folder / TEMPLATES), *opts]
    return setup_cfg(folder / CONFIG, opts, imports=imports)


def check_folder(folder: Path) -> dict:
    """Check that a folder contains a model, and that nothing in it names a file outside of it.

    The weights are checked when they are loaded.

    Returns:
        The content of config.yaml.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is a link out of the folder, or the config is not complete or names
            other files.
    """
    for name in _REQUIRED:
        if not (folder / name).is_file():
            hint = "give the folder of a model, as Predictor.save_pretrained writes it"
            if name == WEIGHTS and (other := _other_weights(folder)):
                hint = f"'{other}' is not read, write the folder again with tools/export_weights.py"
            raise FileNotFoundError(f"'{folder}' contains no {name}: {hint}.")
    # In the cache of Hugging Face, the files of a snapshot are links to this folder.
    blobs = folder.absolute().parent.parent / "blobs"
    for name in FILES:
        target = (folder / name).resolve()
        if not any(target.is_relative_to(path.resolve()) for path in (folder, blobs)):
            raise ValueError(
                f"'{folder / name}' is a link to a file outside of the folder: replace it by the "
                "file."
            )
    content, default = read_yaml(folder / CONFIG), get_cfg()
    if missing := [key for key in _SECTIONS if key not in content]:
        raise ValueError(
            f"'{folder / CONFIG}' is not complete, because it has no {missing[0]}: copy or write "
            "the folder again."
        )
    wrong = ["_BASE_"] if "_BASE_" in content else []
    for key in _LOCAL_KEYS:
        if (value := _find(content, key)) is not None and value not in (_find(default, key), []):
            wrong.append(key)
    templates = _find(content, _TEMPLATES_KEY)
    if isinstance(templates, str) and templates != TEMPLATES and not is_template_set(templates):
        wrong.append(_TEMPLATES_KEY)
    if weights_file(str(_find(content, _PROXY_KEY) or "")) is not None:
        wrong.append(_PROXY_KEY)
    if ":" in str(_find(content, "MODEL.CLIP.NAME")):  # "hf-hub:..." or "local-dir:..."
        wrong.append("MODEL.CLIP.NAME")
    if wrong:
        raise ValueError(
            f"'{folder / CONFIG}': {wrong[0]} names files outside of the folder: remove it if you "
            "trust the folder, or ask its author to write it with Predictor.save_pretrained."
        )
    return content


def _other_weights(folder: Path) -> str | None:
    return next((p.name for p in sorted(folder.iterdir()) if p.suffix in _OTHER_WEIGHTS), None)
