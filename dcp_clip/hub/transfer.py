"""Download model folders from the Hugging Face Hub, and upload them."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from dcp_clip.hub.folder import CARD, FILES
from dcp_clip.utils.arguments import in_one_line

__all__ = ["fetch", "push"]

logger = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def fetch(
    source: str | os.PathLike,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | None = None,
) -> Path:
    """Return the folder of a model, and download it if necessary.

    Only the files of `dcp_clip.hub.folder.FILES` are downloaded. An existing folder needs no
    network. With the environment variable HF_HUB_OFFLINE=1, a model comes from the cache.

    Args:
        source: a folder, or a repository of the Hub such as "owner/name".
        revision: branch, tag or commit of the repository.
        cache_dir: folder of the downloads; default: the cache of Hugging Face.
        token: access token of the Hub; default: that of `hf auth login`.

    Raises:
        FileNotFoundError: if `source` is neither a folder nor the name of a repository.
        NotADirectoryError: if `source` is a file.
        ValueError: if `revision` is given for a folder.
        OSError: if the repository cannot be downloaded.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"'{source}' is a folder, which has no revision '{revision}': leave out the "
                "revision, or give a repository of the Hugging Face Hub."
            )
        return path
    if path.exists():
        raise NotADirectoryError(
            f"'{source}' is a file: give the folder of a model, as Predictor.save_pretrained "
            "writes it, or use Predictor.from_config_file(config_file, weights)."
        )
    repository = os.fspath(source)
    if not _REPOSITORY.fullmatch(repository):
        raise FileNotFoundError(
            f"'{repository}' is neither a folder nor a repository of the Hugging Face Hub, such as "
            "'owner/name': correct it."
        )
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                allow_patterns=list(FILES),
            )
        )
    except Exception as error:  # the errors of the network are those of an HTTP library
        what = f"'{repository}' is no folder, and cannot be downloaded"
        raise _transfer_error(what, error) from error


def push(
    folder: str | os.PathLike,
    repository: str,
    private: bool,
    token: str | None,
    replace_card: bool,
) -> str:
    """Upload a model folder to a repository of the Hub, and return the address of the repository.

    The repository is created if it does not exist. Files of an earlier model are removed, and other
    files stay.

    Args:
        folder: a folder of `dcp_clip.hub.folder.write_folder`.
        repository: "owner/name".
        private: whether a new repository is private.
        token: access token with the right to write; default: that of `hf auth login`.
        replace_card: whether to replace the model card of the repository, which its owner may have
            edited. A repository without a card gets one in any case.

    Raises:
        ValueError: if `repository` is not such a name.
        OSError: if the upload fails.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"'{repository}' is not the name of a repository, such as 'owner/name'.")
    api = HfApi(token=token)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        message = "Upload a DCP-CLIP model"
        old = [name for name in FILES if not (Path(folder) / name).exists()]
        keep_card = not replace_card and api.file_exists(repository, CARD)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            delete_patterns=old,
            ignore_patterns=[CARD] if keep_card else None,
        )
    except Exception as error:  # the errors of the network are those of an HTTP library
        raise _transfer_error(f"'{repository}' cannot be uploaded", error) from error
    if keep_card:
        logger.warning(
            "'%s' keeps its model card %s. Give the results of an evaluation to replace it.",
            repository,
            CARD,
        )
    return str(url)


def _transfer_error(what: str, error: Exception) -> OSError:
    return OSError(
        f"{what}: check the name, the network and the access token. ({in_one_line(error)})"
    )
