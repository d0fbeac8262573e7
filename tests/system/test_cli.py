"""The command line: help that is fast and teaches, errors that are one message, exit codes."""

import json
import re
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from popcosmos_hpc.cli import main
from tests import toy_run

VERBS = ["demo", "ingest", "plan", "fit", "status", "audit", "export", "report"]
VERBS += ["mock", "pool", "bench", "train", "population", "bundle"]


def invoke(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def test_help_lists_the_verbs_in_order_and_is_fast():
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        shown = subprocess.run(toy_run.command("--help"), capture_output=True, text=True, check=True).stdout
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 0.5
    listed = [line.split()[0] for line in shown.split("Commands:")[1].splitlines() if line.strip()]
    assert listed == VERBS
    assert "Exit codes" in shown and "popcosmos-hpc fit run" in shown


def test_help_imports_nothing_heavy():
    heavy = "('jax', 'numpy', 'dask', 'pandas')"
    code = f"import sys, popcosmos_hpc.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    command = main.commands[verb]
    children = command.commands.values() if isinstance(command, click.Group) else [command]
    for child in children:
        shown = invoke(*([verb] if child is command else [verb, child.name]), "--help")
        assert shown.exit_code == 0 and len(shown.output) > 100
        undocumented = [
            item.name for item in child.params if isinstance(item, click.Option) and not item.help
        ]
        assert set(undocumented) <= {"max_rows", "highest_order"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "/nowhere"], "run.yaml"),
        (["status", "/nowhere"], "planned run directory"),
        (["plan", "no_such_config", "--run", "x"], "no_such_config"),
        (["bundle", "show", "no_such_bundle"], "no_such_bundle"),
        (["ingest", "/nowhere.fits", "--preset", "kids_mock", "--out", "/tmp/never"], "/nowhere.fits"),
        (["ingest", "x.fits", "--preset", "no_such_preset", "--out", "/tmp/never"], "no_such_preset"),
        (["report", "/nowhere"], "/nowhere"),
        (["export", "/nowhere"], "/nowhere"),
        (["fit"], "Missing argument"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(arguments, words):
    outcome = invoke(*arguments)
    assert outcome.exit_code == 2
    assert words in outcome.output and "Traceback" not in outcome.output


def test_bundle_verbs():
    shown = invoke("bundle", "show", toy_run.bundle())
    assert shown.exit_code == 0 and "u, g, r, i, z, y" in shown.output
    assert "complete" in invoke("bundle", "verify", toy_run.bundle()).output
    shipped = invoke("bundle", "show", "kids9")
    assert "p99" in shipped.output and "sedpy:vista_vircam_Z" in shipped.output
    assert json.loads(invoke("bundle", "show", "kids9", "--json").output)["name"] == "kids9"
    errors = invoke("bundle", "show", "noise_kids").output
    assert re.search(r"median 0\.\d+ ± 0\.\d+ \(\w+, magnitude [\d.]+\)", errors) and "{" not in errors


def test_damaged_bundle_is_refused(tmp_path):
    folder = toy_run.write_bundle(tmp_path / "bundle")
    (folder / "weights.safetensors").write_bytes(b"x" * 100)
    refused = invoke("bundle", "verify", folder)
    assert refused.exit_code == 2 and "sha256" in refused.output


def test_job_scripts_are_short(repository):
    for script in (repository / "jobs/local").glob("*.sh"):
        assert len(script.read_text().splitlines()) <= 30
        subprocess.run(["bash", "-n", script], check=True)
