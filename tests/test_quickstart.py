"""docs/quickstart.ipynb runs, and its stored outputs are those of the current code.

    jupyter execute --inplace docs/quickstart.ipynb

stores new outputs.
"""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

PATH = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def _joined(outputs) -> list:
    """Join the parts of a stream, whose number depends on when the kernel flushes it."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            joined.append(nbformat.from_dict(output))
    return joined


def outputs(cell) -> list:
    """The pictures (without their content) and the words of a cell's outputs."""
    found = []
    for output in _joined(cell.outputs):
        data = output.get("data", {"text/plain": output.get("text", "")})
        is_picture = "image/jpeg" in data
        words = re.sub(r"[\d.,%]+|\s+", " ", data["text/plain"]).split()
        found.append("picture" if is_picture else words)
    return found


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(PATH, as_version=4)


def test_stored_notebook(stored):
    """It is small, as GitHub shows it, and its cells were run in order, without warnings."""
    nbformat.validate(stored)
    assert PATH.stat().st_size < 500_000 and len(stored.cells) == 10
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(cell.outputs for cell in code)
    assert not [o for cell in code for o in cell.outputs if o.get("name") == "stderr"]
    assert sum(outputs(cell).count("picture") for cell in code) == 3


def test_notebook_runs(stored, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.from_dict(stored)
    before = [outputs(cell) for cell in stored.cells if cell.cell_type == "code"]
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=None, resources=resources).execute()
    assert [outputs(cell) for cell in notebook.cells if cell.cell_type == "code"] == before
