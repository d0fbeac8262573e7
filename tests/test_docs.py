"""Documentation says what the code does: commands, options, links, files and tables."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from popcosmos_hpc.errors import Status
from popcosmos_hpc.parameters import POP_COSMOS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
FENCE = re.compile(r"^ *```(?:console|bash)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def _commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for fence in FENCE.findall(page.read_text()):
            for line in fence.replace("\\\n", " ").splitlines():
                command = line.split(" #")[0].strip().removeprefix("$ ")
                if command:
                    found.append((page.relative_to(ROOT).as_posix(), command))
    return found


COMMANDS = _commands()
OWN = [(page, command) for page, command in COMMANDS if command.startswith("popcosmos-hpc")]


def _resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    cli = pytest.importorskip("popcosmos_hpc.cli", reason="the command line is not built yet")
    command: click.Command = cli.main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        child = command.get_command(click.Context(command), words[0])
        assert child is not None, f"no verb {words[0]!r} under {command.name!r}"
        command, words = child, words[1:]
    return command, words


@pytest.mark.parametrize(("page", "command"), OWN, ids=[f"{page}:{command}" for page, command in OWN])
def test_own_commands_parse(page, command):
    verb, words = _resolve(shlex.split(command)[1:])
    if "--help" in words:
        return
    for parameter in verb.params:  # existence of the reader's own files is not what is tested
        if isinstance(parameter.type, click.Path):
            parameter.type.exists = False
    verb.make_context(verb.name, words)


@pytest.mark.parametrize(("page", "command"), [c for c in COMMANDS if c[1].startswith("make ")])
def test_make_targets_exist(page, command):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command.split()[1] in targets


def test_other_commands_are_ones_that_we_expect():
    heads = {shlex.split(command)[0] for _, command in COMMANDS}
    allowed = {
        "popcosmos-hpc",
        "make",
        "source",
        "pip",
        "pytest",
        ".venv/bin/pre-commit",
        "sbatch",
        "qsub",
        "docker",
        "python",  # of this checkout's benchmarks alone: the next test
    }
    assert heads <= allowed, f"commands that no test checks: {heads - allowed}"


@pytest.mark.parametrize(("page", "command"), [c for c in COMMANDS if c[1].startswith("python ")])
def test_benchmark_commands_parse(page, command):
    _, module, name, *words = shlex.split(command)
    assert (module, name.split(".")[0]) == ("-m", "benchmarks")
    verb = importlib.import_module(name).main
    for parameter in verb.params:
        if isinstance(parameter.type, click.Path):
            parameter.type.exists = False
    verb.make_context(verb.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_resolve(page):
    targets = [link for link in LINK.findall(page.read_text()) if not re.match(r"[a-z]+:", link)]
    missing = [link for link in targets if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"


def _pages_of(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in _pages_of(part)]


def test_every_page_can_be_found():
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(_pages_of(navigation)) == sorted(pages)
    guides = {page for page in pages if page.startswith(("howto/", "reference/"))}
    assert guides <= set(LINK.findall((ROOT / "docs/index.md").read_text()))
    assert {f"docs/{page}" for page in guides} <= set(LINK.findall((ROOT / "README.md").read_text()))


def test_architecture_names_files_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| `(\w+)/`[^|]*\| (.*?`\w+\.py`.*) \|$", text, re.MULTILINE)
    named = [f"{room}/{name}" for room, files in rows for name in re.findall(r"`(\w+\.py)`", files)]
    assert len(named) > 80
    assert not [name for name in named if not (ROOT / "popcosmos_hpc" / name).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_configurations_exist(page):
    named = set(re.findall(r"\bconfigs/[\w./-]+\.yaml\b", page.read_text()))
    missing = [name for name in sorted(named) if not (ROOT / name).is_file()]
    assert not missing, f"{page.name} names {missing}"


@pytest.mark.parametrize(
    "script",
    [
        *ROOT.glob("jobs/**/*.sh"),
        *ROOT.glob("jobs/**/*.sbatch"),
        *ROOT.glob("jobs/**/*.pbs"),
        ROOT / ".ci/run",
    ],
)
def test_scripts_are_valid_bash(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_reference_lists_every_status():
    text = (ROOT / "docs/reference/statuses.md").read_text()
    for status in Status:
        assert f"| {int(status)} | `{status.name}` | {status.sentence} |" in text


def test_reference_lists_every_parameter():
    text = (ROOT / "docs/reference/parameters.md").read_text()
    for parameter in POP_COSMOS.parameters:
        assert f"| `{parameter.name}` |" in text and parameter.description in text


def test_decisions_are_indexed():
    index = (ROOT / "docs/decisions/index.md").read_text()
    numbered = sorted(ROOT.glob("docs/decisions/[0-9]*.md"))
    assert numbered and all(f"({page.name})" in index for page in numbered)


def test_site_lists_every_page():
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in ROOT.glob("docs/**/*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in listed


def test_citation_file_is_whole():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert all({"type", "title", "authors"} <= set(reference) for reference in citation["references"])
    urls = " ".join(str(reference.get("url")) for reference in citation["references"])
    assert all(number in urls for number in ("2402.00935", "2406.19437", "2506.12122"))
