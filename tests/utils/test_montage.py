"""Montages: each image beside its regions, and each name in its region."""

import json

import numpy as np
import pytest
from PIL import Image

from dcp_clip.utils.images.reading import read_image, reduced_size
from dcp_clip.utils.images.writing import write_jpeg
from dcp_clip.utils.label_maps import save_label_map
from dcp_clip.utils.montage import GAP, MontageError, draw_montage, place_names, read_results
from dcp_clip.utils.visualization import draw_overlay
from dcp_clip.vocabulary import Vocabulary

NAMES = Vocabulary(["sky", "tree", "car"], colors=[(0, 0, 250), (0, 250, 0), (250, 0, 0)])


@pytest.fixture
def write_results(tmp_path):
    """``write_results(label maps)``: an output folder of the demo with grey images."""

    def write(*label_maps, name="out", vocabulary=NAMES, max_pixels=None):
        folder, lines = tmp_path / name, []
        folder.mkdir()
        for i, labels in enumerate(label_maps):
            image = np.full((*labels.shape, 3), 90, np.uint8)
            Image.fromarray(image).save(tmp_path / f"{name}{i}.png")
            reduced = read_image(tmp_path / f"{name}{i}.png", max_pixels)
            overlay = draw_overlay(reduced, labels, vocabulary, alpha=1.0)
            write_jpeg(folder / f"{i}_overlay.jpg", overlay)
            save_label_map(folder / f"{i}_labels.png", labels, vocabulary)
            ids, counts = np.unique(labels, return_counts=True)
            found = [
                {"id": int(k), "name": vocabulary.display_names[k], "share": n / labels.size}
                for k, n in sorted(zip(ids, counts), key=lambda x: -x[1])
            ]
            line = {"file": str(tmp_path / f"{name}{i}.png"), "categories": found}
            line |= {"width": labels.shape[1], "height": labels.shape[0]}
            line |= {"overlay": f"{i}_overlay.jpg", "labels": f"{i}_labels.png"}
            lines.append(json.dumps(line))
        (folder / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))
        settings = {"working folder": None, "max_input_pixels": max_pixels}
        (folder / "run.json").write_text(json.dumps(settings))
        return folder

    return write


@pytest.fixture(scope="module")
def program(load_program):
    return load_program("tools/montage.py")


def halves(height=64, width=64):
    labels = np.zeros((height, width), np.uint8)
    labels[height // 2 :] = 1
    return labels


def test_image_and_regions_are_side_by_side(program, write_results, tmp_path):
    out = tmp_path / "montage.png"
    program.main([str(write_results(halves())), "--output", str(out), "--side", "200"])
    page = np.array(Image.open(out))
    assert page.shape == (200 + 2 * GAP, 400 + GAP // 2 + 2 * GAP, 3)
    assert (page[GAP : GAP + 200, GAP : GAP + 200] == 90).all()
    regions = page[GAP : GAP + 200, GAP + 200 + GAP // 2 :][:, :200]
    for y, color in ((5, NAMES.colors[0]), (-5, NAMES.colors[1])):
        np.testing.assert_allclose(regions[y, 5], color, atol=4)  # a JPEG is not exact
    assert (page[:GAP] == 255).all()


def test_relative_paths_are_relative_to_the_working_folder_of_the_run(write_results, tmp_path):
    folder = write_results(halves())
    path = folder / "results.jsonl"
    path.write_text(path.read_text().replace(f"{tmp_path}/", ""))
    settings = {"working folder": str(tmp_path), "max_input_pixels": None}
    (folder / "run.json").write_text(json.dumps(settings))
    (result,) = read_results(folder)
    assert (result.image == 90).all()


def test_the_regions_of_a_reduced_image_have_no_legend(write_results):
    (result,) = read_results(write_results(halves(600, 700), max_pixels=260_000))
    width, height = reduced_size((700, 600), 260_000)
    assert result.image.shape == result.regions.shape == (height, width, 3)
    np.testing.assert_allclose(result.regions[-5], np.tile(NAMES.colors[1], (width, 1)), atol=4)


def test_names_are_in_their_regions_without_overlaps(write_results):
    labels = halves(100, 100)
    labels[60:90, 10:90] = 2
    (result,) = read_results(write_results(labels))
    places = dict(place_names(result, (300, 300), em=14))
    assert set(places) == set(NAMES.display_names)
    count = np.zeros((300, 300), int)
    for name, (left, top, right, bottom) in places.items():
        count[top:bottom, left:right] += 1
        center = labels[(top + bottom) // 6, (left + right) // 6]
        assert NAMES.display_names[center] == name  # "tree" is a narrow frame around "car"
    assert count.max() == 1


def test_small_regions_and_small_pictures_have_no_names(write_results):
    labels = halves(100, 100)
    labels[50:53, 50:53] = 2
    (result,) = read_results(write_results(labels))
    assert sorted(name for name, _ in place_names(result, (300, 300), em=14)) == ["sky", "tree"]
    assert not place_names(result, (20, 9), em=14)


def test_several_folders_sizes_and_a_caption(program, write_results, tmp_path):
    many = Vocabulary([f"name {i}" for i in range(300)])
    folders = [
        write_results(halves(60, 90), halves(90, 60), halves(1, 1)),
        write_results(299 - halves().astype(int), name="many", vocabulary=many),
    ]
    two_columns = draw_montage([r for f in folders for r in read_results(f)], side=120)
    out = tmp_path / "montage.png"
    arguments = [*map(str, folders), "--output", str(out), "--side", "120", "--columns", "1"]
    program.main([*arguments, "--only", "3", "0", "--caption", "The licence of the images. " * 20])
    page = np.array(Image.open(out))
    assert page.shape[1] < two_columns.shape[1] and (page[-60:, :200] < 200).any()
    assert (page[20, 20] == 90).all()


def test_error_of_the_user_is_one_sentence(program, write_results, tmp_path):
    folder, empty = write_results(halves()), write_results(name="empty")
    for arguments, message in (
        ([str(tmp_path / "absent")], "results.jsonl"),
        ([str(folder), "--only", "1"], "--only 1: there are 1 results"),
        ([str(folder), "--columns", "0"], "--columns and --side must be positive"),
        ([str(empty)], "no results"),
        ([str(folder), "--output", str(tmp_path / "no/such.png")], "no/such.png"),
    ):
        with pytest.raises(SystemExit) as stop:
            program.main(["--output", str(tmp_path / "out.png"), *arguments])
        assert stop.value.code.startswith("error: ") and message in stop.value.code
    results = folder / "results.jsonl"
    relative = results.read_text().replace(f"{tmp_path}/", "")
    (folder / "relative").mkdir()
    (folder / "relative" / "results.jsonl").write_text(relative)
    with pytest.raises(MontageError, match=r"run.json.* again"):
        read_results(folder / "relative")
    (tmp_path / "out0.png").unlink()
    with pytest.raises(MontageError, match=r"out0.png.* again"):
        read_results(folder)
    results.write_text(results.read_text().replace('"overlay"', '"confidence"'))
    with pytest.raises(MontageError, match="out0.png .*again with --format overlay labels"):
        read_results(folder)
