"""The model card of a model folder: README.md with the metadata header of the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from dcp_clip.evaluation.environment import weights_fingerprint
from dcp_clip.evaluation.report import EvaluationReport
from dcp_clip.modeling.clip.loading import weights_file
from dcp_clip.vocabulary import Vocabulary

__all__ = ["model_card", "read_results"]

_TEXT = """\
---
{header}
---

# {name}

This is a model for open-vocabulary semantic segmentation. It labels every pixel of an image with
one of the names that you give. It was made with an independent implementation of the idea of
[DCP-CLIP](https://arxiv.org/abs/2603.13951).

```python
from dcp_clip import Predictor

predictor = Predictor.from_pretrained({source})
prediction = predictor("photo.jpg", vocabulary={example})
print(prediction.shares)
```

| property | value |
| --- | --- |
| architecture | {architecture} |
| CLIP encoder | {clip} |
| training data | {training} |
| default vocabulary | {count} names in `names.json` |
| parameters | {parameters:,} |
| confidence | {confidence} |

## Evaluation

{evaluation}
"""
_NO_EVALUATION = "This model has no evaluation yet.\n"


def read_results(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """Read results.json of an evaluation, which must be of the weights of a model.

    Args:
        path: a file that `train_net.py --eval-only` wrote.
        model: the model with the weights that were evaluated.

    Returns:
        The content, see `EvaluationReport.to_json`.

    Raises:
        ValueError: if the file cannot be read, or the evaluation is of other weights.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = content["environment"]["weights fingerprint"]
        _report(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"'{path}' cannot be read as the results.json of an evaluation: give the file that "
            f"train_net.py --eval-only wrote. ({type(error).__name__})"
        ) from error
    if found != weights_fingerprint(model):
        raise ValueError(
            f"'{path}' is the evaluation of other weights than those of this model: evaluate the "
            "model again."
        )
    return content


def model_card(
    source: str,
    cfg: CfgNode,
    model: nn.Module,
    vocabulary: Vocabulary,
    results: Mapping[str, Any] | None,
) -> str:
    """Return the text of README.md.

    Args:
        source: the folder or repository, for the title and the example.
        cfg: config of the model, with the data sets that it was trained on.
        model: the model with its weights.
        vocabulary: the default vocabulary.
        results: the content of results.json; None if there is no evaluation.
    """
    name = source.rpartition("/")[2]
    clip = cfg.MODEL.CLIP.PRETRAINED
    if weights_file(clip) is not None:
        clip = Path(clip).name  # without the folders of this machine
    header = ModelCardData(
        model_name=name,
        library_name="dcp_clip",
        pipeline_tag="image-segmentation",
        tags=["dcp-clip", "semantic-segmentation", "open-vocabulary", "clip", "detectron2"],
        eval_results=_eval_results(results) or None,
    )
    arguments = _literal(source)
    if cfg.MODEL.IMPORTS:
        arguments += f", imports={_literal(list(cfg.MODEL.IMPORTS))}"
    # Without negative names, because a vocabulary needs others, and each name once.
    positive = [x[0] for i, x in enumerate(vocabulary.synonyms) if i not in vocabulary.negatives]
    calibrated = f"calibrated, temperature {model.temperature:.3g}"
    return _TEXT.format(
        header=header.to_yaml(),
        name=name,
        source=arguments,
        example=_literal(list(dict.fromkeys(positive[:3]))),
        architecture=cfg.MODEL.META_ARCHITECTURE,
        clip=f"{cfg.MODEL.CLIP.NAME}, pre-trained: {clip or 'no'}",
        training=", ".join(cfg.DATASETS.TRAIN) or ("not recorded" if cfg.MODEL.WEIGHTS else "none"),
        count=f"{len(vocabulary):,}",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        confidence=calibrated if model.temperature != 1 else "not calibrated",
        evaluation=_NO_EVALUATION if results is None else _evaluation(results),
    )


def _literal(value: str | list[str]) -> str:
    """Return a text or a list of texts as Python code with double quotes."""
    return json.dumps(value, ensure_ascii=False)


def _eval_results(results: Mapping[str, Any] | None) -> list[EvalResult]:
    found = []
    for dataset, tasks in results["results"].items() if results else ():
        value = tasks.get("sem_seg", {}).get("mIoU")
        if value is not None:
            found.append(
                EvalResult(
                    task_type="image-segmentation",
                    dataset_type=dataset,
                    dataset_name=dataset,
                    metric_type="mean_iou",
                    metric_name="mIoU (%)",
                    metric_value=round(value, 2),
                )
            )
    return found


def _evaluation(results: Mapping[str, Any]) -> str:
    # A path of the machine that evaluated tells readers nothing.
    environment = results["environment"]
    weights = re.split(r"[/\\]", environment.get("MODEL.WEIGHTS", ""))[-1]
    return _report({**results, "environment": {**environment, "MODEL.WEIGHTS": weights}})


def _report(content: Mapping[str, Any]) -> str:
    report = EvaluationReport(content["datasets"], content["environment"])
    for dataset, tasks in content["results"].items():
        report.add(dataset, tasks)
    return report.to_markdown()
