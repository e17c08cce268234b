"""montage.py: each image beside its regions, each region under its own name."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcp_clip.utils.visualization import draw_overlay, save_label_map
from dcp_clip.vocabulary import Vocabulary

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))

import montage

NAMES = Vocabulary(["sky", "tree", "car"], colors=[(0, 0, 250), (0, 250, 0), (250, 0, 0)])


@pytest.fixture
def results(tmp_path):
    """``results(label maps)``: a folder as demo.py leaves it, of grey images."""

    def make(*label_maps, name="out", vocabulary=NAMES):
        folder, lines = tmp_path / name, []
        folder.mkdir()
        for i, labels in enumerate(label_maps):
            image = np.full((*labels.shape, 3), 90, np.uint8)
            Image.fromarray(image).save(tmp_path / f"{name}{i}.png")
            overlay = draw_overlay(image, labels, vocabulary, alpha=1.0)
            Image.fromarray(overlay).save(folder / f"{i}_overlay.png")
            save_label_map(folder / f"{i}_labels.png", labels, vocabulary)
            ids, counts = np.unique(labels, return_counts=True)
            found = [
                {"id": int(k), "name": vocabulary.display_names[k], "share": n / labels.size}
                for k, n in sorted(zip(ids, counts), key=lambda x: -x[1])
            ]
            line = {"file": str(tmp_path / f"{name}{i}.png"), "categories": found}
            line |= {"width": labels.shape[1], "height": labels.shape[0]}
            line |= {"overlay": f"{i}_overlay.png", "labels": f"{i}_labels.png"}
            lines.append(json.dumps(line))
        (folder / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return folder

    return make


def halves(height=64, width=64):
    labels = np.zeros((height, width), np.uint8)
    labels[height // 2 :] = 1
    return labels


def test_image_and_regions_stand_side_by_side(results, tmp_path):
    out = tmp_path / "montage.png"
    montage.main([str(results(halves())), "--output", str(out), "--side", "200"])
    page = np.array(Image.open(out))
    assert page.shape == (200 + 2 * montage.GAP, 400 + montage.GAP // 2 + 2 * montage.GAP, 3)
    y, x = montage.GAP, montage.GAP
    assert (page[y : y + 200, x : x + 200] == 90).all()
    regions = page[y : y + 200, x + 200 + montage.GAP // 2 :][:, :200]
    assert (regions[5, 5] == NAMES.colors[0]).all() and (regions[-5, 5] == NAMES.colors[1]).all()
    assert (page[:y] == 255).all()


def test_names_are_within_their_regions_and_over_no_other(results, monkeypatch):
    written = {}
    monkeypatch.setattr(
        montage, "_write", lambda draw, corner, name, font: written.update({name: (corner, font)})
    )
    labels = halves(100, 100)
    labels[60:90, 10:90] = 2
    (result,) = montage.read_results(results(labels))
    montage.write_names(Image.new("RGB", (300, 300)), result, em=14)
    assert set(written) == set(NAMES.display_names)
    taken = np.zeros((300, 300), int)
    for name, ((x, y), font) in written.items():
        _, _, wide, high = font.getbbox(name)
        taken[y : y + high, x : x + wide] += 1
        center = labels[(y + high // 2) // 3, (x + wide // 2) // 3]
        assert NAMES.display_names[center] == name  # "tree" only has a frame around "car"
    assert taken.max() == 1


def test_small_regions_and_small_pictures_get_no_name(results, monkeypatch):
    written = []
    monkeypatch.setattr(montage, "_write", lambda draw, corner, name, font: written.append(name))
    labels = halves(100, 100)
    labels[50:53, 50:53] = 2
    (result,) = montage.read_results(results(labels))
    montage.write_names(Image.new("RGB", (300, 300)), result, em=14)
    assert sorted(written) == ["sky", "tree"]
    written.clear()
    montage.write_names(Image.new("RGB", (20, 9)), result, em=14)
    assert not written


def test_folders_sizes_and_captions(results, tmp_path):
    many = Vocabulary([f"name {i}" for i in range(300)])
    folders = [
        results(halves(60, 90), halves(90, 60), halves(1, 1)),
        results(299 - halves().astype(int), name="many", vocabulary=many),
    ]
    plain = montage.draw_montage([r for f in folders for r in montage.read_results(f)], side=120)
    out = tmp_path / "montage.png"
    arguments = [*map(str, folders), "--output", str(out), "--side", "120", "--columns", "1"]
    montage.main([*arguments, "--only", "3", "0", "--caption", "Drawings: nobody's " * 20])
    page = np.array(Image.open(out))
    assert page.shape[1] < plain.shape[1] and (page[-60:, :200] < 200).any()
    assert (page[20, 20] == 90).all()


def test_what_cannot_be_shown_is_one_sentence(results, tmp_path):
    folder, empty = results(halves()), results(name="empty")
    for arguments, message in (
        ([str(tmp_path / "absent")], "results.jsonl"),
        ([str(folder), "--only", "1"], "--only 1: there are 1 results"),
        ([str(empty)], "no results"),
        ([str(folder), "--output", str(tmp_path / "no/such.png")], "no/such.png"),
    ):
        with pytest.raises(SystemExit) as stop:
            montage.main(["--output", str(tmp_path / "out.png"), *arguments])
        assert message in str(stop.value)
    (tmp_path / "out0.png").unlink()
    with pytest.raises(montage.MontageError, match=r"out0.png.* again"):
        montage.read_results(folder)
