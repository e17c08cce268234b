"""Downloads and uploads, with functions in place of the network."""

import os

import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from dcp_clip.hub import transfer
from dcp_clip.hub.folder import FILES
from dcp_clip.predictor import Predictor


def test_download(saved, monkeypatch, image, predictor):
    calls = []

    def snapshot_download(repository, **options):
        calls.append((repository, options))
        return str(saved)

    monkeypatch.setattr(transfer, "snapshot_download", snapshot_download)
    options = {"revision": "v1", "cache_dir": "cache", "token": "hf_x"}
    downloaded = Predictor.from_pretrained("owner/na.me-1", **options)
    assert calls == [("owner/na.me-1", {**options, "allow_patterns": list(FILES)})]
    assert downloaded(image).shares == predictor(image).shares


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no\nnetwork"), HFValidationError("x")])
def test_failed_download(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(transfer, "snapshot_download", fail)
    with pytest.raises(OSError) as raised:
        Predictor.from_pretrained("owner/name")
    message = str(raised.value)
    assert message.startswith("'owner/name' is no folder, and cannot be downloaded: check the name")
    assert "\n" not in message and type(error).__name__ in message


def test_the_real_client_without_network():
    """HF_HUB_OFFLINE is set, so Hugging Face looks into its cache only."""
    with pytest.raises(OSError, match="'owner/name' is no folder, and cannot be downloaded"):
        Predictor.from_pretrained("owner/name")


@pytest.mark.parametrize("source", ["missing", "a/b/c", "../x", "/tmp/missing", "", "owner/", "~x"])
def test_neither_folder_nor_repository(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transfer, "snapshot_download", None)
    expected = "contains no config.yaml" if source == "" else "is neither a folder nor a repository"
    with pytest.raises(FileNotFoundError, match=expected):
        Predictor.from_pretrained(source)


@pytest.mark.parametrize("source", ["output/model_final.pth", "config.yaml"])
def test_a_file_is_not_looked_up_on_the_hub(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    (tmp_path / source).touch()
    monkeypatch.setattr(transfer, "snapshot_download", None)
    with pytest.raises(NotADirectoryError, match=f"'{source}' is a file: give the folder"):
        Predictor.from_pretrained(source)


def test_a_folder_has_no_revision(saved):
    with pytest.raises(ValueError, match="is a folder, which has no revision 'v1'"):
        Predictor.from_pretrained(saved, revision="v1")


class FakeApi:
    """Records what is uploaded."""

    calls: list[tuple] = []
    ignored: list[list[str] | None] = []
    error: Exception | None = None
    has_card = False

    def __init__(self, token) -> None:
        self.calls.append(("token", token))

    def create_repo(self, repository, private, exist_ok):
        if self.error:
            raise self.error
        self.calls.append((repository, private, exist_ok))
        return f"https://hub.example/{repository}"

    def file_exists(self, repository, name):
        return self.has_card

    def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns, ignore_patterns):
        self.ignored.append(ignore_patterns)
        # Files of an earlier model, such as its calibration, would not fit to the new weights.
        assert set(delete_patterns) == set(FILES) - set(os.listdir(folder_path))
        with open(os.path.join(folder_path, "README.md"), encoding="utf-8") as file:
            self.calls.append((repo_id, set(os.listdir(folder_path)), file.read()))


def test_upload(predictor, monkeypatch):
    monkeypatch.setattr(transfer, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    url = predictor.push_to_hub("owner/name", private=True, token="hf_x")
    assert url == "https://hub.example/owner/name"
    token, created, (repository, files, card) = FakeApi.calls
    assert token == ("token", "hf_x") and created == ("owner/name", True, True)
    assert repository == "owner/name" and files == set(FILES)
    assert 'from_pretrained("owner/name")' in card and "\n# name\n" in card


def test_an_earlier_calibration_is_removed(predictor, monkeypatch):
    removed = []

    class Api(FakeApi):
        def upload_folder(self, delete_patterns, **arguments):
            removed.extend(delete_patterns)

    monkeypatch.setattr(transfer, "HfApi", Api)
    monkeypatch.setattr(predictor.model, "temperature", 1.0)
    predictor.push_to_hub("owner/name")
    assert "model.calibration.json" in removed and "model.safetensors" not in removed


def test_the_card_of_a_repository_is_kept(predictor, monkeypatch, caplog):
    """Its owner may have added a licence."""
    monkeypatch.setattr(transfer, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "ignored", [])
    monkeypatch.setattr(FakeApi, "has_card", True)
    predictor.push_to_hub("owner/name")
    assert FakeApi.ignored == [["README.md"]] and "'owner/name' keeps its model card" in caplog.text
    monkeypatch.setattr("dcp_clip.hub.mixin.read_results", lambda *_: None)
    predictor.push_to_hub("owner/name", results="results.json")
    assert FakeApi.ignored[1] is None


class NetworkError(Exception):
    """As the errors of httpx, it is neither an OSError nor a ValueError."""


@pytest.mark.parametrize("error", [OSError("401 Unauthorized"), NetworkError("401 Unauthorized")])
def test_failed_upload(predictor, monkeypatch, error):
    monkeypatch.setattr(transfer, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "error", error)
    with pytest.raises(OSError, match="'owner/name' cannot be uploaded: check .*401 Unauthorized"):
        predictor.push_to_hub("owner/name")
    with pytest.raises(ValueError, match="'name' is not the name of a repository"):
        predictor.push_to_hub("name")
