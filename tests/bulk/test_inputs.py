"""The inputs of a bulk run: folders, patterns, lists and shards."""

import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pytest

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from dcp_clip.bulk.inputs import InputError, find_inputs  # noqa: E402
from dcp_clip.bulk.storage import StorageError, read_bytes  # noqa: E402


def files(table):
    return table["file"].to_pylist()


def test_folders_patterns_and_files(photographs, monkeypatch):
    photos = photographs / "photos"
    everything = sorted(map(str, (*photos.glob("*.*"), *photos.glob("sub/*.*"))))
    table = find_inputs([str(photos)])
    assert files(table) == everything and len(everything) == 10
    assert table["offset"].null_count == 10 and set(table["member"].to_pylist()) == {""}
    assert files(find_inputs([f"{photos}/*.png"])) == sorted(map(str, photos.glob("*.png")))
    assert find_inputs([str(photos), f"{photos}/0.png", f"file://{photos}"]) == table  # once each
    monkeypatch.chdir(photographs)
    assert find_inputs(["photos"]) == table


@pytest.mark.parametrize("column", ["file", "path"])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_lists(photographs, tmp_path, column, suffix, monkeypatch):
    monkeypatch.chdir(photographs)
    named = ["photos/2.png", "http://127.0.0.1/a.jpg", "missing.png", "shard.tar", "photos/2.png"]
    path = tmp_path / f"list{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"width": range(5), column: named}), path)
    else:
        path.write_text("".join(json.dumps({"width": 1, column: name}) + "\n" for name in named))
    table = find_inputs([str(path)])
    shard = str(photographs / "shard.tar")
    whole = [str(photographs / name) for name in ("missing.png", "photos/2.png")]
    assert files(table) == [*whole, *[shard] * 3, "http://127.0.0.1/a.jpg"]


def test_names_with_brackets(tmp_path):
    folder = tmp_path / "lists [2024]"
    folder.mkdir()
    for name in ("a [1]", "a 1"):
        (folder / f"{name}.jsonl").write_text(f'{{"file": "/photos/{name}.jpg"}}\n')
    assert files(find_inputs([f"{folder}/a [1].jsonl"])) == ["/photos/a [1].jpg"]
    everything = ["/photos/a 1.jpg", "/photos/a [1].jpg"]
    assert files(find_inputs([f"{folder}/*.jsonl"])) == everything
    remote, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    for name in ("x [1].jpg", "x 1.jpg", "photos [1]/y.jpg"):
        remote.pipe(f"/{tmp_path.name}/{name}", b"")
    for given, name in (("x [1].jpg", "x [1].jpg"), ("photos [1]", "photos [1]/y.jpg")):
        (found,) = files(find_inputs([f"{url}/{given}"]))
        assert found.endswith(f"{tmp_path.name}/{name}")


def test_members_of_shards_are_read_by_their_position(photographs):
    shard = photographs / "shard.tar"
    table = find_inputs([f"{photographs}/*.tar"])
    assert table["member"].to_pylist() == ["000009.png", "000010.png", "000011.png"]
    with tarfile.open(shard) as tar:
        for row in table.to_pylist():
            content = read_bytes(row["file"], row["offset"], row["size"])
            assert content == tar.extractfile(row["member"]).read() != b""


def test_a_file_is_listed_once_for_all_inputs(tmp_path, monkeypatch):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.jpg").touch()
    (tmp_path / "q").symlink_to(tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    inputs = [str(tmp_path / "p"), "../p", str(tmp_path / "q"), "../p/a.jpg"]
    assert files(find_inputs(inputs)) == [f"{tmp_path}/p/a.jpg"]
    assert files(find_inputs(["../q/../p"])) == [f"{tmp_path}/p/a.jpg"]


def write_shard(path, names):
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"bytes"))
    return str(path)


def test_hidden_files_are_no_images(tmp_path):
    names = ["a.jpg", "._a.jpg", ".hid/x.jpg", "./s/b.jpg"]
    table = find_inputs([write_shard(tmp_path / "shard.tar", names)])
    assert table["member"].to_pylist() == ["./s/b.jpg", "a.jpg"]
    remote, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    for name in names[:3]:
        remote.pipe(f"/{tmp_path.name}/{name}", b"")
    for given in (url, f"{url}/*.jpg", f"{url}/**/*.jpg"):
        (found,) = files(find_inputs([given]))
        assert found.endswith(f"{tmp_path.name}/a.jpg")
    assert len(find_inputs([f"{url}/.hid"])) == len(find_inputs([f"{url}/.hid/*"])) == 1


def test_a_damaged_or_joined_shard_is_refused(tmp_path):
    whole = write_shard(tmp_path / "whole.tar", [f"{i}.jpg" for i in range(6)])
    content = Path(whole).read_bytes()
    assert len(find_inputs([whole])) == 6
    header = 3 * 1024
    damaged = content[:header] + b"XXXXXXXX" + content[header + 8 :]
    cut = [content[:header], content[: header + 100], content[: header + 600], content[: 6 * 1024]]
    for i, wrong in enumerate([damaged, *cut, content + content]):
        path = tmp_path / f"wrong{i}.tar"
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=f"{path.name} as a tar file"):
            find_inputs([str(path)])


def test_lists_of_other_types(tmp_path):
    path = tmp_path / "list.jsonl"
    long = "t" * 3_000_000
    rows = [{"file": "/a.jpg", "label": 3}, {"path": "/b.jpg", "label": "x", "text": long}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert files(find_inputs([str(path)])) == ["/a.jpg", "/b.jpg"]
    path.write_text('{"file": ""}\n')
    with pytest.raises(InputError, match="rows without a path"):
        find_inputs([str(path)])
    table = pa.table({"file": pa.array(["/a.jpg", "/b.jpg", "/a.jpg"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "list.parquet")
    assert files(find_inputs([str(tmp_path / "list.parquet")])) == ["/a.jpg", "/b.jpg"]


def test_unusual_names(tmp_path):
    (tmp_path / "a::b.jpg").write_bytes(b"content")
    (file,) = files(find_inputs([str(tmp_path)]))
    assert file == f"{tmp_path}/a::b.jpg" and read_bytes(file) == b"content"
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.jpg")).touch()
    with pytest.raises(InputError, match=r"udcff.jpg' is not valid UTF-8"):
        find_inputs([str(tmp_path)])
    shard = write_shard(tmp_path / "shard.tar", ["\udcff.jpg"])
    with pytest.raises(InputError, match=r"udcff.jpg' in .*shard.tar is not valid UTF-8"):
        find_inputs([shard])


def test_every_error_names_the_input(photographs, tmp_path):
    (tmp_path / "broken.tar").write_bytes((photographs / "shard.tar").read_bytes()[:700])
    (tmp_path / "noise.tar").write_bytes(b"no tar file" * 100)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "other.jsonl").write_text('{"name": "a.png"}\n')
    (tmp_path / "numbers.jsonl").write_text('{"file": 3}\n')
    (tmp_path / "nothing.jsonl").write_text('{"file": "a.png"}\n{"file": null}\n')
    (tmp_path / "empty").mkdir()
    cases = [*(p.name for p in tmp_path.iterdir()), "missing.tar", "*.tar.gz", "missing.jsonl"]
    for name in cases:
        with pytest.raises(ValueError, match=name.replace("*", r"\*")) as error:
            find_inputs([str(tmp_path / name)])
        assert "\n" not in str(error.value)
    for url in ("nosuch://bucket/a", "memory://nothing"):
        with pytest.raises((StorageError, InputError), match=url):
            find_inputs([url])
