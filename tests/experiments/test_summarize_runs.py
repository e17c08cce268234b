"""tools/summarize_runs.py: means and spreads, missing values, short names, errors."""

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

BASE, UNSEEN = "emoji_scenes_base_test", "emoji_scenes_unseen_style_test"


@pytest.fixture(scope="session")
def summarize_runs(load_program):
    return load_program("tools/summarize_runs.py")


def write(folder: Path, **things: float | None) -> None:
    """Write the results.json of an evaluation; `things` maps data sets to mIoU of things."""
    results = {
        name: {
            "sem_seg": {"mIoU": 1.0, "mIoU_things": value, "IoU-cat": 3.0},
            "proposals": {"recall_things": 90.0},
            "speed": {"model_images_per_second": 50.0},
        }
        for name, value in things.items()
    }
    folder.mkdir(parents=True)
    content = {"datasets": list(results), "results": results, "environment": {}}
    (folder / "results.json").write_text(json.dumps(content))


@pytest.fixture
def runs(tmp_path):
    """A run with three seeds, one of them with a second data set, and a run without seeds that has
    a null value."""
    for seed, value in ((1, 40.0), (2, 44.0), (10, 42.0)):
        write(tmp_path / "default" / f"seed{seed}", **{BASE: value})
    path = tmp_path / "default" / "seed1" / "results.json"
    content = json.loads(path.read_text())
    content["results"][UNSEEN] = {"sem_seg": {"mIoU_things": 30.0}}
    path.write_text(json.dumps(content))
    write(tmp_path / "clip_alone", **{BASE: 10.0, UNSEEN: None})
    return tmp_path


def rows(text: str) -> list[list[str]]:
    """The cells of the tables."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "--" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table(summarize_runs, runs, capsys):
    summarize_runs.main([str(runs)])
    assert rows(capsys.readouterr().out) == [
        ["run", "base", "unseen_style", "mean"],
        ["clip_alone", "10.0 (1)", "–", "–"],
        ["default", "42.0 ± 2.0 (3)", "30.0 (1)", "35.0 (1)"],
    ]


def test_a_folder_that_is_named_twice_counts_once(summarize_runs, runs, capsys):
    summarize_runs.main([str(runs)])
    once = capsys.readouterr().out
    summarize_runs.main([str(runs), f"{runs}/default/.."])
    assert capsys.readouterr().out == once


def test_data_without_things_shows_the_mean_iou(summarize_runs, tmp_path, capsys):
    write(tmp_path / "a", own=None)
    summarize_runs.main([str(tmp_path / "a")])
    assert "mIoU, " in capsys.readouterr().out


def test_several_metrics_and_milliseconds(summarize_runs, runs, capsys):
    summarize_runs.main([str(runs), "--metric", "mIoU", "--metric", "recall_things"])
    found = rows(capsys.readouterr().out)
    assert found[2][1] == "1.0 ± 0.0 (3)" and found[5][1] == "90.0 ± 0.0 (3)"
    summarize_runs.main([str(runs), "--milliseconds"])
    assert rows(capsys.readouterr().out)[5] == ["default", "20.0 ± 0.0 (3)", "–", "–"]


def test_paired_differences(summarize_runs, runs, capsys):
    """The differences 1, 3 and 2 have the standard error 1 / sqrt(3). A missing seed is left out; a
    run without seeds is compared with every seed."""
    for seed, value in ((1, 39.0), (2, 41.0), (10, 40.0)):
        write(runs / "other" / f"seed{seed}", **{BASE: value})
    write(runs / "short" / "seed2", **{BASE: 50.0})
    summarize_runs.main([str(runs), "--against", "default"])
    text = capsys.readouterr().out
    assert "mIoU_things, default minus each run, mean ± standard error (seeds)" in text
    assert [row[:2] for row in rows(text)[1:]] == [
        ["clip_alone", "+32.0 ± 1.2 (3)"],
        ["other", "+2.0 ± 0.6 (3)"],
        ["short", "-6.0 (1)"],
    ]
    summarize_runs.main([str(runs), "--against", "clip_alone"])
    assert rows(capsys.readouterr().out)[1][:3] == ["default", "-32.0 ± 1.2 (3)", "–"]
    with pytest.raises(SystemExit, match="no run 'none'; there are: clip_alone, default, other"):
        summarize_runs.main([str(runs), "--against", "none"])


def test_json(summarize_runs, runs, capsys):
    summarize_runs.main([str(runs), "--json"])
    cells = json.loads(capsys.readouterr().out)
    assert cells["default"][BASE]["mIoU_things"] == {
        "mean": 42.0,
        "sd": 2.0,
        "n": 3,
        "seeds": {"1": 40.0, "2": 44.0, "10": 42.0},
    }
    assert UNSEEN not in cells["clip_alone"]
    assert cells["clip_alone"][BASE]["mIoU_things"]["seeds"] == {"none": 10.0}


def test_chosen_runs_in_their_order(summarize_runs, runs, capsys):
    write(runs / "other" / "seed1", **{BASE: 39.0})
    summarize_runs.main([str(runs), "--runs", "default,clip_alone"])
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found] == ["run", "default", "clip_alone"]
    summarize_runs.main([str(runs), "--runs", "other", "--against", "default"])
    assert rows(capsys.readouterr().out)[1] == ["other", "+1.0 (1)"]


def test_names_of_runs(summarize_runs, tmp_path):
    """The path from the folder, or the folder's own name; with several folders, their paths too."""
    write(tmp_path / "a" / "ablation" / "x" / "seed3", **{BASE: 1.0})
    write(tmp_path / "b" / "seedling", **{BASE: 1.0})

    def runs_of(*folders):
        values = summarize_runs.read_values(folders)
        return {run: list(seeds) for (run, _, metric), seeds in values.items() if metric == "mIoU"}

    assert runs_of(tmp_path) == {"a/ablation/x": [3], "b/seedling": [None]}
    assert runs_of(tmp_path / "a" / "ablation" / "x") == {"x": [3]}
    folders = [tmp_path / "a", tmp_path / "b"]
    assert list(runs_of(*folders)) == [f"{folders[0]}/ablation/x", f"{folders[1]}/seedling"]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([BASE, UNSEEN, "emoji_scenes_unseen_test"], ["base", "unseen_style", "unseen"]),
        ([BASE, "emoji_scenes_base_val"], ["test", "val"]),
        ([BASE], [BASE]),
        (["a_b", "a"], ["a_b", "a"]),
        (["a_a_a", "a_a"], ["a_a", "a"]),
        ([], []),
    ],
)
def test_short_names(summarize_runs, names, short):
    assert summarize_runs.short_names(names) == short


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=5), unique_by=tuple))
def test_short_names_are_distinct(summarize_runs, words):
    names = ["_".join(w) for w in words]
    short = summarize_runs.short_names(names)
    assert len(set(short)) == len(names) and all(short)
    assert all(part in name for part, name in zip(short, names))


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_spread_is_the_sample_standard_deviation(summarize_runs, values):
    cell = json.loads(summarize_runs.to_json({("run", "set", "m"): dict(enumerate(values))}))
    cell = cell["run"]["set"]["m"]
    assert cell["mean"] == pytest.approx(sum(values) / len(values))
    assert cell["sd"] == pytest.approx(statistics.variance(values) ** 0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "contains no results.json"),
        ("{", r"seed1/results\.json is not a report"),
        ('{"results": {"a": 3}}', r"seed1/results\.json is not a report"),
        ('{"datasets": []}', r"seed1/results\.json is not a report .*KeyError"),
        ('{"results": {}}', "no result has the metric 'mIoU'; there are: none"),
    ],
)
def test_folders_that_cannot_be_summarised(summarize_runs, tmp_path, content, message):
    (tmp_path / "seed1").mkdir()
    if content is not None:
        (tmp_path / "seed1" / "results.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        summarize_runs.main([str(tmp_path)])


def test_wrong_arguments(summarize_runs, runs):
    with pytest.raises(SystemExit, match="absent contains no results.json"):
        summarize_runs.main([str(runs / "absent")])
    with pytest.raises(SystemExit, match="no .* 'mIuO'; there are: mIoU, mIoU_things, mill"):
        summarize_runs.main([str(runs), "--metric", "mIuO"])


def test_run_with_and_without_seeds(summarize_runs, runs):
    write(runs / "default" / "x", **{BASE: 1.0})
    (runs / "default" / "x" / "results.json").rename(runs / "default" / "results.json")
    with pytest.raises(SystemExit, match=r"default has a results\.json beside its seed folders"):
        summarize_runs.main([str(runs)])
