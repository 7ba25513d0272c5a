"""The notebook in docs/ runs as it stands, with a run and a study of its own in place of the user's."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[3] / "docs" / "a-new-study.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_shows_volumes_and_a_picture(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "patient7").mkdir()
    source = cohort / "data/imagesTr/pat1_0001.nii.gz"
    (tmp_path / "patient7" / "T1Gd.nii.gz").write_bytes(source.read_bytes())
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    (given,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert 'RUN = "runs/brats"' in given.source and 'STUDY = "patient7"' in given.source
    given.source = given.source.replace("runs/brats", str(cohort / "run"))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "('tumour',) from ('T1Gd',)" in printed and "tumour: " in printed and " ml, " in printed
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (tmp_path / "segmentations" / "patient7" / "mask.nii.gz").is_file()
