"""tools/list_encoders.py, and the table of docs/encoders.md that it printed."""

from pathlib import Path

import open_clip
import pytest

from dcp_clip.benchmarking import encoders
from dcp_clip.modeling.clip.loading import create_clip

DOCS = Path(__file__).parents[2] / "docs" / "encoders.md"


@pytest.fixture
def run(load_program, capsys):
    """``run(*arguments)``: the rows of the table, as lists of cells."""

    def run(*arguments):
        load_program("tools/list_encoders.py").main(arguments)
        return cells(capsys.readouterr().out)

    return run


def cells(table):
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] != "---"]


def test_models_are_built_and_compared(run):
    header, *rows = run("test-convnext", "test-vit-16", "--build")
    assert header == list(encoders.COLUMNS)
    assert [row[0] for row in rows] == ["`test-convnext`", "`test-vit-16`"]
    assert rows[0][2:7] == ["TimmModel (ConvNeXt)", "average", "maskclip", "48", "4, 8, 16, 32"]
    assert rows[1][2:7] == ["VisionTransformer", "class token", "all", "40", "16, 16, 16"]
    assert all(row[7].startswith("run: equal (image ") for row in rows)


def test_large_models_are_built_without_memory(run):
    _, row = run("ViT-bigG-14")
    assert row[1] == "2540" and row[7] == "built, not run: 10.2 GB of weights"


def test_a_difference_is_found(monkeypatch):
    """The text tower that is compared is another one."""
    encode = encoders.encode_tokens
    monkeypatch.setattr(encoders, "encode_tokens", lambda *args: 1.001 * encode(*args))
    assert encoders.examine("test-vit-16", 1.0).result.startswith("run: DIFFERENT")


def test_image_towers_are_examined_without_their_text_tower(monkeypatch):
    def fail(name, **kwargs):
        raise encoders.CLIPWeightsError("no config.json")

    monkeypatch.setattr(encoders, "create_clip", fail)
    row = encoders.examine("test-vit-16", 1.0)
    assert row.result.startswith("run: equal (image") and "text tower not built" in row.result
    assert row.width == 40


def test_refused_towers_have_the_reason(monkeypatch):
    def create(name, **kwargs):
        model = create_clip(name, **kwargs)
        model.visual.pool_type = "none"
        return model

    monkeypatch.setattr(encoders, "create_clip", create)
    assert encoders.examine("test-vit-16", 1.0).result.startswith("refused: CLIPBackbone reads")


@pytest.mark.parametrize("arguments", [("ViT-B-17",), ("--limit", "0")])
def test_wrong_arguments(load_program, arguments):
    with pytest.raises(SystemExit, match="error: .*(ViT-B-17|--limit)"):
        load_program("tools/list_encoders.py").main(arguments)


def test_the_documentation_lists_every_model():
    text = DOCS.read_text(encoding="utf-8")
    if f"open_clip {open_clip.__version__}" not in text:
        pytest.skip("the table is of another version of open_clip")
    header, *rows = cells(text[text.index("| name |") :])
    assert header == list(encoders.COLUMNS)
    folder = Path(open_clip.__file__).with_name("model_configs")
    assert {row[0].strip("`") for row in rows} == {path.stem for path in folder.glob("*.json")}
    assert not [row for row in rows if "DIFFERENT" in row[7] or "wrong" in row[7]]
