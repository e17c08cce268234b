"""`HubMixin`: a predictor as a folder, or as a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn
from typing_extensions import Self  # typing has it from Python 3.11 on

from dcp_clip.hub.card import read_results
from dcp_clip.hub.folder import read_config, read_names, write_folder
from dcp_clip.hub.transfer import fetch, push
from dcp_clip.vocabulary import Vocabulary

__all__ = ["HubMixin"]


class HubMixin:
    """The methods of `dcp_clip.Predictor` for folders and for the Hub."""

    cfg: CfgNode
    model: nn.Module
    unknown_below: float
    vocabulary: Vocabulary

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        vocabulary: Any = None,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        token: str | None = None,
        opts: Sequence[str] = (),
        imports: Sequence[str] = (),
        **options: Any,
    ) -> Self:
        """Create a predictor from a model folder, or from a repository of the Hugging Face Hub.

        Nothing in the folder can run code or name a file outside of it. An existing folder needs no
        network, unless the tokenizer of its CLIP (docs/encoders.md) or the weights of its second
        tower (MODEL.CLIP.PROXY) are themselves on the Hub.

        Args:
            source: a folder of `save_pretrained`, or a repository such as "owner/name".
            vocabulary: see `Predictor.set_vocabulary`; default: the names of the folder.
            revision: branch, tag or commit of the repository.
            cache_dir: folder of the downloads; default: the cache of Hugging Face.
            token: access token of the Hub; default: that of `hf auth login`.
            opts: alternating config keys and values that override those of the folder.
            imports: modules of your own to import first, see `dcp_clip.setup_cfg`.
            **options: other arguments of the constructor.

        Raises:
            OSError: if the repository cannot be downloaded, or a file is missing.
            ValueError: if the folder names files outside of it, or the config is invalid.
            KeyError: if the config contains an unknown key.
            WeightsError: if the weights cannot be read or do not belong to the config.
            VocabularyError: if the names are invalid.
        """
        folder = fetch(source, revision, cache_dir, token)
        cfg = read_config(folder, opts, imports)
        return cls(cfg, read_names(folder) if vocabulary is None else vocabulary, **options)

    def save_pretrained(
        self, save_directory: str | os.PathLike, results: str | os.PathLike | None = None
    ) -> None:
        """Write the model, its config, calibration and current vocabulary into a folder.

        The folder also gets a model card, README.md. It gets its name when it is complete.

        Args:
            save_directory: a folder that does not exist or is empty.
            results: results.json of an evaluation of these weights, for the model card.

        Raises:
            WriteError: if the folder is not empty or cannot be written.
            ValueError: if `results` cannot be read or is the evaluation of other weights, or the
                model needs more than such a folder contains.
        """
        # `from_pretrained` reads "~" in the same way.
        self._write(Path(os.path.expanduser(save_directory)), results)

    def push_to_hub(
        self,
        repo_id: str,
        results: str | os.PathLike | None = None,
        *,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to a repository of the Hugging Face Hub.

        If the repository has a model card, it is replaced only if `results` are given.

        Args:
            repo_id: "owner/name"; it is created if it does not exist.
            results: see `save_pretrained`.
            private: whether a new repository is private.
            token: access token with the right to write; default: that of `hf auth login`.

        Returns:
            The address of the repository.

        Raises:
            OSError: if the upload fails.
            ValueError: if `repo_id` is not such a name; see also `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            self._write(folder, results, repo_id)
            return push(folder, repo_id, private, token, replace_card=results is not None)

    def _write(
        self, folder: Path, results: str | os.PathLike | None, source: str | None = None
    ) -> None:
        content = None if results is None else read_results(results, self.model)
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.TEST.UNKNOWN_BELOW = self.unknown_below
        write_folder(folder, cfg, self.model, self.vocabulary, content, source)
