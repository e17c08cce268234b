"""The output folder of a bulk run."""

import pytest

pa = pytest.importorskip("pyarrow")
from dcp_clip.bulk.inputs import SCHEMA  # noqa: E402
from dcp_clip.bulk.partitions import BulkFolder, BulkFolderError  # noqa: E402
from dcp_clip.bulk.storage import StorageError  # noqa: E402
from dcp_clip.utils.atomic_files import WriteError  # noqa: E402


def images(count):
    rows = [{"file": f"{i:04}.jpg", "member": ""} for i in range(count)]
    return pa.Table.from_pylist(rows, SCHEMA)


def results(folder, partition):
    rows = folder.read_list(partition).drop_columns(["offset", "size"])
    errors = [f"bad {name}" if name == "0007.jpg" else None for name in rows["file"].to_pylist()]
    return rows.append_column("error", pa.array(errors, pa.string()))


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    """A folder of this machine, and one of another file system."""
    return str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/out"


def test_partitions_are_fixed_parts_of_the_list(url, monkeypatch):
    monkeypatch.setattr("dcp_clip.bulk.partitions._PARTITIONS_PER_LIST", 2)
    folder = BulkFolder(url)
    folder.open(images(11), 3, {"model": "a"})
    assert folder.partitions == 4 and [folder.length(i) for i in range(4)] == [3, 3, 3, 2]
    parts = [folder.read_list(i) for i in range(4)]
    assert pa.concat_tables(parts) == images(11) and list(map(len, parts)) == [3, 3, 3, 2]
    for number in (3, 0, 2):
        folder.write_partition(number, results(folder, number))
    again = BulkFolder(url)
    again.open(images(11), 3, {"model": "a"})
    assert again.finished() == {0, 2, 3} and again.with_errors({0, 2, 3}) == {2}
    again.write_partition(1, results(again, 1))
    again.write_partition(2, results(again, 2))  # a second time
    assert again.finish() == {"images": 11, "errors": 1, "partitions": 4}
    again.write_partition(1, results(again, 1).slice(1))
    with pytest.raises(BulkFolderError, match="has 10 rows for 11 images"):
        again.finish()


def test_another_run_is_refused(url):
    BulkFolder(url).open(images(11), 3, {"model": "a", "vocabulary": ["x"]})
    others = [
        (images(10), 3, {"model": "a", "vocabulary": ["x"]}, "images was 11 and is 10"),
        (images(12).slice(1), 3, {"model": "a", "vocabulary": ["x"]}, "list of images was"),
        (images(11), 4, {"model": "a", "vocabulary": ["x"]}, "partition size was 3 and is 4"),
        (images(11), 3, {"model": "b", "vocabulary": ["x"]}, "model was a and is b"),
        (images(11), 3, {"model": "a", "vocabulary": ["x", "y"]}, "vocabulary was"),
    ]
    for *arguments, message in others:
        with pytest.raises(BulkFolderError, match=message):
            BulkFolder(url).open(*arguments)
    folder = BulkFolder(url)
    folder.folder.write("_run.json", b"{")
    with pytest.raises(BulkFolderError, match="_run.json is damaged"):
        folder.open(images(11), 3, {})
    folder.folder.fs.rm_file(f"{folder.folder.path}/_run.json")
    folder.images, folder.size = 11, 3
    folder.write_partition(0, results(folder, 0))
    with pytest.raises(BulkFolderError, match="has results but no _run.json"):
        folder.open(images(11), 3, {})


def test_a_stopped_start_is_repeated(tmp_path):
    """Without _run.json the list may be incomplete; it is written again."""
    folder = BulkFolder(str(tmp_path))
    folder.folder.write("_inputs/00000.parquet", b"half")
    folder.open(images(2), 3, {})
    assert folder.read_list(0) == images(2)


def test_a_file_of_a_server_is_complete_or_absent(tmp_path, monkeypatch):
    """A file system that is neither this machine's nor an object store, such as SFTP."""
    monkeypatch.setattr("dcp_clip.bulk.storage.Folder.is_local", False)
    folder = BulkFolder(str(tmp_path / "out"))
    folder.open(images(2), 3, {})
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.local.LocalFileOpener.commit", lambda *_: 1 / 0)
        with pytest.raises(WriteError, match="part-0000000.parquet' cannot be written"):
            folder.write_partition(0, results(folder, 0))
    assert folder.finished() == set()
    folder.write_partition(0, results(folder, 0))
    assert folder.finish() == {"images": 2, "errors": 0, "partitions": 1}


def test_a_damaged_partition_is_named(url):
    folder = BulkFolder(url)
    folder.open(images(5), 3, {})
    for number in range(2):
        folder.write_partition(number, results(folder, number))
    folder.folder.write("part-0000001.parquet", b"half")
    for use in (folder.finish, lambda: folder.with_errors({0, 1})):
        with pytest.raises(BulkFolderError, match="part-0000001.parquet is damaged: delete it"):
            use()


def test_a_folder_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"cannot use the folder {tmp_path}/file/out: Not a dir"):
        BulkFolder(str(tmp_path / "file" / "out")).open(images(2), 3, {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", full)
    for url in (str(tmp_path / "out"), "memory://full/out"):
        message = f"'{url}/_inputs/00000.parquet' cannot be written: No space left on device"
        with pytest.raises(WriteError, match=message):
            BulkFolder(url).open(images(2), 3, {})
    assert not list((tmp_path / "out" / "_inputs").iterdir())
