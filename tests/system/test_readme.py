"""The tour of verbs in the README, run in its order, as it is written, on the toy world."""

import shlex

import lsdb
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from popcosmos_hpc.cli import main
from tests import toy_run
from tests.test_docs import FENCE

STEPS = ("ingest", "plan", "fit", "status", "export", "report")


def _tour(readme: str) -> list[list[str]]:
    """Arguments of the verbs that take a table to a report, in the README's order."""
    lines = [line.split(" #")[0] for fence in FENCE.findall(readme) for line in fence.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("popcosmos-hpc ")]
    return [command for command in commands if command[0] in STEPS]


@pytest.fixture
def names(repository, tmp_path, monkeypatch) -> dict[str, str]:
    """What stands for the README's own names, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(toy_run.table(), "table.parquet")
    # The catalog stands where the README's own configuration looks for it.
    path = yaml.safe_load((repository / "configs/runs/demo.yaml").read_text())["input"]["path"]
    changes = {"input": {"path": path}, "survey": str(toy_run.preset())}
    settings = {**toy_run.settings(), **changes}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(settings))
    return {
        "table.fits": "table.parquet",
        "kids_mock": str(toy_run.preset()),
        "configs/runs/demo.yaml": "toy.yaml",
    }


def test_tour_of_the_readme(repository, names, tmp_path):
    tour = _tour((repository / "README.md").read_text())
    assert [command[0] for command in tour] == list(STEPS)
    said = {}
    for command in tour:
        result = CliRunner().invoke(main, [names.get(word, word) for word in command])
        assert result.exit_code == 0, f"{' '.join(command)}: {result.output}"
        said[command[0]] = result.output
    assert f"{toy_run.N_GALAXIES} of {toy_run.N_GALAXIES}" in said["status"]
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()
    catalog = lsdb.open_catalog(tmp_path / "run" / "catalog")
    assert len(catalog.compute()) == toy_run.N_GALAXIES
