import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from popcosmos_hpc.errors import LedgerError, SchemaError, Status
from popcosmos_hpc.report import metrics
from popcosmos_hpc.report.certificates import status_counts
from popcosmos_hpc.report.page import write_report
from popcosmos_hpc.report.run_data import read_run_data
from popcosmos_hpc.report.sed_fits import choose
from popcosmos_hpc.report.throughput import sessions
from tests.report.synthetic import write_run

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags balance, and everything that the page needs is in it."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.text = [], set(), [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "img":
            assert attributes["alt"]
            self.sources.append(attributes["src"])
        assert tag not in ("script", "iframe", "link")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _parse(path) -> Page:
    page = Page()
    page.feed(path.read_text())
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report"), finished=False)


@pytest.fixture(scope="module")
def page(run):
    return _parse(write_report(run))


def test_page_is_self_contained_and_its_contents_link(page):
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert len(page.links) == 7
    assert len(page.sources) >= 9
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)


def test_page_states_the_numbers_of_the_run(page, run):
    text = " ".join(page.text)
    data = read_run_data(run)
    name, chosen = data.secure()
    found = metrics.point_metrics(data.median("redshift")[chosen], data.truth["redshift"][chosen])
    assert f"{found.n:,} known redshifts, {name}" in text
    assert f"{found.sigma_mad.value:.4f}" in text
    assert f"{data.status.galaxies_done:,} of {data.plan.n_galaxies:,}" in text
    assert "1 block left" in text and "MemoryError: no" in text
    assert data.fingerprint["weights"] in text
    assert "arXiv:2506.12122" in text


def test_report_does_not_depend_on_when_it_is_written(run, page):
    again = re.sub(r"Written .* UTC", "", write_report(run, run / "again.html").read_text())
    assert again == re.sub(r"Written .* UTC", "", (run / "report.html").read_text())


def test_rows_of_photometry_posterior_and_truth_belong_together(run):
    data = read_run_data(run)
    assert data.n_galaxies == data.status.galaxies_done
    # Exact posteriors: residuals in units of their width have unit width only if rows match.
    width = (data.quantile("redshift", 84.0) - data.quantile("redshift", 16.0)) / 2
    pull = (data.median("redshift") - data.truth["redshift"]) / width
    assert metrics.sigma_mad(pull[np.isfinite(pull)]) == pytest.approx(1.0, abs=0.2)
    assert metrics.offset_and_scatter(data.median("log10_mass"), data.truth["log10_mass"])[0] > 300


def test_quantities_have_the_units_of_the_store(run):
    data = read_run_data(run)
    assert data.units == tuple(f"unit of {name}" for name in data.names)


def test_thinned_run_keeps_whole_blocks(run):
    data = read_run_data(run, max_galaxies=150)
    assert 0 < data.n_galaxies < data.status.galaxies_done
    assert data.n_galaxies == sum(block.n_galaxies for block in data.blocks)


def test_status_counts(run):
    counts = status_counts(read_run_data(run))
    assert counts[Status.NO_OBSERVED_BAND] == 4
    assert sum(counts.values()) == 350


def test_examples_have_draws_and_are_distinct(run):
    data = read_run_data(run)
    rows = [row for row, _ in choose(data)]
    assert len(rows) == len(set(rows)) == 6
    assert np.isfinite(data.summary[rows]).all()


def test_truth_from_a_table_in_any_order(run, tmp_path):
    data = read_run_data(run)
    known = data.photometry["object_id"][::-2]
    table = pa.table({"object_id": known, "redshift_spec": np.arange(len(known)) / 100})
    pq.write_table(table, tmp_path / "truth.parquet")
    truth = read_run_data(run, tmp_path / "truth.parquet").truth["redshift"]
    assert np.isfinite(truth).sum() == len(known)
    assert truth[-1] == 0.0 and np.isnan(truth[-2]) and truth[-3] == pytest.approx(0.01)


def test_truth_table_without_identifiers_is_refused(run, tmp_path):
    pq.write_table(pa.table({"redshift_spec": [1.0]}), tmp_path / "truth.parquet")
    with pytest.raises(SchemaError, match="object_id"):
        read_run_data(run, tmp_path / "truth.parquet")


def test_missing_pieces_are_said(tmp_path):
    run = write_run(tmp_path, counts=(40,), truth=False, masses=False)
    (tmp_path / "bundle" / "weights.safetensors").write_bytes(b"damaged")
    text = " ".join(_parse(write_report(run, tmp_path / "page.html")).text)
    assert "No known redshifts to compare with" in text
    assert "no stellar masses" in text
    assert "could not be loaded" in text


def test_one_galaxy(tmp_path):
    run = write_run(tmp_path, counts=(1,))
    assert "1" in " ".join(_parse(write_report(run)).text)


def test_no_run_and_nothing_finished_are_errors(tmp_path, run):
    with pytest.raises(LedgerError, match="plan"):
        write_report(tmp_path)
    (tmp_path / "plan.parquet").write_bytes((run / "plan.parquet").read_bytes())
    with pytest.raises(LedgerError, match="finished block"):
        write_report(tmp_path)


def test_sessions_leave_out_pauses(run):
    records = sorted(read_run_data(run).done.values(), key=lambda record: record.time)
    times = [record.time for record in records]
    assert sessions(records, []) == [(times[0] - 2.0, times[-1])]
    assert sessions(records, [times[0] - 2.5, times[1] + 0.5]) == [
        (times[0] - 2.5, times[1]),
        (times[1] + 0.5, times[-1]),
    ]
