"""The examples of docs/ do what their pages say: every Python block runs, and shows by itself that it does."""

import re
import shlex
from pathlib import Path

import pytest

from lezo.sweep_jobs import jobs

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]


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


COMMANDS = sorted(
    {
        line.partition("  #")[0].strip()
        for page in (DOCS.parent / "README.md", *DOCS.glob("*.md"))
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
def test_a_command_of_a_page_composes(command, tmp_path):
    words = [
        word.replace("DIR", str(tmp_path)) for word in shlex.split(command, comments=True)[1:] if word != "-m"
    ]
    assert jobs(words)
