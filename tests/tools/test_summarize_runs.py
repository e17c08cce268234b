"""summarize_runs.py: means and spreads by hand, missing cells, short names, clear errors."""

import json
import statistics
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import summarize_runs

from dcp_clip.experiments import run_results as run_results

BASE, UNSEEN = "emoji_scenes_base_test", "emoji_scenes_unseen_style_test"


def write(folder: Path, **things: float | None) -> None:
    """A results.json as an evaluation leaves it, of data sets with these things mIoU."""
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
    """Three seeds of one run, the last of them not yet at its second data set; and a run without
    seeds, one of whose figures is NaN."""
    for seed, value in ((1, 40.0), (2, 44.0), (10, 42.0)):
        write(tmp_path / "default" / f"seed{seed}", **{BASE: value})
    path = tmp_path / "default" / "seed1" / "results.json"
    content = json.loads(path.read_text())
    content["results"][UNSEEN] = {"sem_seg": {"mIoU_things": 30.0}}
    path.write_text(json.dumps(content))
    write(tmp_path / "clip_alone", **{BASE: 10.0, UNSEEN: None})
    return tmp_path


def rows(text: str) -> list[list[str]]:
    """The cells of every line of the tables but the rulers."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "--" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table(runs, capsys):
    summarize_runs.main([str(runs)])
    assert rows(capsys.readouterr().out) == [
        ["run", "base", "unseen_style", "mean"],
        ["clip_alone", "10.0 (1)", "–", "–"],
        ["default", "42.0 ± 2.0 (3)", "30.0 (1)", "35.0 (1)"],
    ]


def test_several_metrics_and_milliseconds(runs, capsys):
    summarize_runs.main([str(runs), "--metric", "mIoU", "--metric", "recall_things"])
    found = rows(capsys.readouterr().out)
    assert found[2][1] == "1.0 ± 0.0 (3)" and found[5][1] == "90.0 ± 0.0 (3)"
    summarize_runs.main([str(runs), "--milliseconds"])
    assert rows(capsys.readouterr().out)[5] == ["default", "20.0 ± 0.0 (3)", "–", "–"]


def test_differences_are_taken_seed_by_seed(runs, capsys):
    """By hand: 1, 3 and 2 less, of which the standard error is 1 / sqrt(3); one seed is missing in
    the other, and a run without seeds is compared with every one."""
    for seed, value in ((1, 39.0), (2, 41.0), (10, 40.0)):
        write(runs / "other" / f"seed{seed}", **{BASE: value})
    write(runs / "short" / "seed2", **{BASE: 50.0})
    summarize_runs.main([str(runs), "--against", "default"])
    text = capsys.readouterr().out
    assert "mIoU_things, default less each, mean ± standard error (seeds)" in text
    assert [row[:2] for row in rows(text)[1:]] == [
        ["clip_alone", "+32.0 ± 1.2 (3)"],
        ["other", "+2.0 ± 0.6 (3)"],
        ["short", "-6.0 (1)"],
    ]
    summarize_runs.main([str(runs), "--against", "clip_alone"])
    assert rows(capsys.readouterr().out)[1][:3] == ["default", "-32.0 ± 1.2 (3)", "–"]
    with pytest.raises(SystemExit, match="no run 'none'; there are: clip_alone, default, other"):
        summarize_runs.main([str(runs), "--against", "none"])


def test_json(runs, capsys):
    summarize_runs.main([str(runs), "--json"])
    cells = json.loads(capsys.readouterr().out)
    assert cells["default"][BASE]["mIoU_things"] == {
        "mean": 42.0,
        "sd": 2.0,
        "n": 3,
        "seeds": {"1": 40.0, "2": 44.0, "10": 42.0},
    }
    absent = {"mean": None, "sd": None, "n": 0, "seeds": {}}
    assert cells["clip_alone"][UNSEEN]["mIoU_things"] == absent
    assert cells["clip_alone"][BASE]["mIoU_things"]["seeds"] == {"none": 10.0}


def test_order_of_the_rows(runs):
    values = run_results.summarize([runs], ["mIoU"], ["default", "absent"])
    assert list(values) == ["default", "clip_alone"]


def test_names_of_runs(tmp_path):
    """The path from the folder searched; the folder's own name; the folder too if several."""
    write(tmp_path / "a" / "ablation" / "x" / "seed3", **{BASE: 1.0})
    write(tmp_path / "b" / "seedling", **{BASE: 1.0})
    names = {(r.run, r.seed) for r in run_results.find_results(tmp_path)}
    assert names == {("a/ablation/x", 3), ("b/seedling", None)}
    found = run_results.find_results(tmp_path / "a" / "ablation" / "x")
    assert [(r.run, r.seed) for r in found] == [("x", 3)]
    folders = [tmp_path / "a", tmp_path / "b"]
    values = run_results.summarize(folders, ["mIoU"])
    assert list(values) == [f"{folders[0]}/ablation/x", f"{folders[1]}/seedling"]


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
def test_short_names(names, short):
    assert list(summarize_runs.short_names(names).values()) == short


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=5), unique_by=tuple))
def test_short_names_tell_data_sets_apart(words):
    names = ["_".join(w) for w in words]
    short = summarize_runs.short_names(names)
    assert len(set(short.values())) == len(names) and all(short.values())
    assert all(short[name] in name for name in names)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_spread_is_that_of_the_sample(values):
    mean, sd = summarize_runs.mean_and_sd(values)
    assert mean == pytest.approx(sum(values) / len(values))
    assert sd == pytest.approx(statistics.variance(values) ** 0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no results.json"),
        ("{", r"seed1/results\.json is no report"),
        ('{"results": {"a": 3}}', r"seed1/results\.json is no report"),
        ('{"datasets": []}', r"seed1/results\.json is no report .*KeyError"),
        ('{"results": {}}', "no result has the metric 'mIoU_things'; there are: none"),
    ],
)
def test_folders_that_cannot_be_summarised(tmp_path, content, message):
    (tmp_path / "seed1").mkdir()
    if content is not None:
        (tmp_path / "seed1" / "results.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        summarize_runs.main([str(tmp_path)])


def test_wrong_arguments(runs):
    with pytest.raises(SystemExit, match="absent is no folder"):
        summarize_runs.main([str(runs / "absent")])
    with pytest.raises(SystemExit, match="no .* 'mIuO'; there are: mIoU, mIoU_things, mill"):
        summarize_runs.main([str(runs), "--metric", "mIuO"])


def test_a_run_with_and_without_seeds(runs):
    write(runs / "default" / "x", **{BASE: 1.0})
    (runs / "default" / "x" / "results.json").rename(runs / "default" / "results.json")
    with pytest.raises(SystemExit, match=r"default has a results\.json beside its seed folders"):
        summarize_runs.main([str(runs)])
