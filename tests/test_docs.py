"""The examples of docs/ do what their pages say: every Python block runs, and shows by itself that it does."""

import re
import shlex
from pathlib import Path

import pytest

from lezo.sweeps.jobs import jobs
from tests.lezo.zoo import FAMILIES

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]
PAGES.remove(DOCS / "start.md")  # tests/test_start.py runs it with its commands
PAGES.remove(DOCS / "results.md")  # tests/lezo/report/test_recomputed.py runs it in a report's folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_in_order(page, tmp_path, monkeypatch, capsys):
    """A block asserts something, or is followed by a text block with what it prints."""
    monkeypatch.chdir(tmp_path)
    content, names = page.read_text(encoding="utf-8"), {"__name__": "__main__"}
    for found in BLOCK.finditer(content):
        code, expected = found.groups()
        line = content.count("\n", 0, found.start()) + 2
        assert "assert " in code or expected is not None, f"{page}:{line}: shows nothing"
        capsys.readouterr()
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
        assert expected is None or capsys.readouterr().out == expected


def test_the_library_has_its_page():
    assert DOCS / "library.md" in PAGES


PAGES_AND_README = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))


@pytest.mark.parametrize("page", PAGES_AND_README, ids=lambda page: page.stem)
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_table_of_models_is_of_all_families_that_are_tested():
    rows = re.findall(r"^\| ([\w-]+) \| (?:packed|plain: )", (DOCS / "models.md").read_text(), re.MULTILINE)
    assert rows == list(FAMILIES)


COMMANDS = sorted(
    {
        line.partition("  #")[0].strip()
        for page in PAGES_AND_README
        for block in re.findall(
            r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith(("lezo-run", "lezo-bench"))
        and "--" not in line
        and "+experiment" not in line  # recipes have tests of their own
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_page_composes(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        word.replace("DIR", str(tmp_path)) for word in shlex.split(command, comments=True)[1:] if word != "-m"
    ]
    for path in (Path(word.removeprefix("data.path=")) for word in words if word.startswith("data.path=")):
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
        if path.suffix and "*" not in path.name:
            path.touch()
    assert jobs(words)
