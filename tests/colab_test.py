"""The notebook runs from top to bottom in its tiny mode; its own assertion checks that the loss fell."""

import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "colab").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore")  # of the kernel machinery, not of ours
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("JAXSAE_TINY", "1")
    monkeypatch.setenv("JAXSAE_OUT", str(tmp_path / "out"))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    text = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "fraction of variance unexplained" in text
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_there_is_a_notebook_and_it_carries_no_output():
    nbformat = pytest.importorskip("nbformat")
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)


def test_the_install_cell_asks_no_package_index_for_jaxsae(tmp_path, monkeypatch):
    """It is on none: where there is no clone the cell says so."""
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    for path in NOTEBOOKS:
        cell = next(c.source for c in nbformat.read(path, as_version=4).cells if "pip" in c.source)
        with pytest.raises(SystemExit, match="no clone of jaxsae here"):
            exec(cell, {})
