"""What the documentation shows works as it is written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from perfmodel.cli.main import ORDER

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])


def blocks() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        codes = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
        found += [(f"{page.name}-{i}", code) for i, code in enumerate(codes)]
    return found


@pytest.mark.parametrize("code", [code for _, code in blocks()], ids=[name for name, _ in blocks()])
def test_python_in_the_documentation_runs(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    words = ["trn2", "--chips", "16", "--out", str(tmp_path)] if example.name == "fabric_explorer.py" else []
    run = subprocess.run(
        [sys.executable, "-W", "error", str(example), *words], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert run.stdout


def test_a_program_of_the_examples_can_be_named_on_the_command_line() -> None:
    command = "-m perfmodel estimate examples.own_model:program --machine h100 --chips 16 --layout fsdp=16 --quiet"
    subprocess.run([sys.executable, *shlex.split(command)], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_commands_that_the_documentation_names_exist() -> None:
    named = {
        name
        for page in PAGES
        for name in re.findall(r"perfmodel (\w+)(?= MODEL| list| show| check| llama)", page.read_text())
    }
    assert {"tune", "estimate", "trace", "hardware"} <= named <= set(ORDER)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 600
