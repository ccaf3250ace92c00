"""Tables as LaTeX: whatever text is in them, it is text."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lezo.report.cells import NOTHING, Cell, Table
from lezo.report.latex import carries_results, latex

EVIL = '50 % of_{a}\\input{x} & #1 $y$ ~^ <b>|"q" \u00b1 \u2605 1e-07 3e-05 a\nb'
SCORE = Cell("75.0 \u00b1 7.1", 75.0, 7.1, best=True)


def table(name: str = "results", columns: int = 0, method: str = "fo-sgd") -> Table:
    more = [f"column number {i}" for i in range(columns)]
    rows = [
        [Cell("rte"), Cell(method), SCORE, Cell("3 of 3", 1.0), *[NOTHING] * columns],
        [Cell("rte"), Cell("lezo"), Cell("70.0", 70.0), Cell("2 of 3", 0.7), *[NOTHING] * columns],
        [Cell("sst2"), Cell("lezo"), NOTHING, NOTHING, *[NOTHING] * columns],
    ]
    columns_ = ("task", "method", "test %", "steps to target", *more)
    return Table(name, "Results", columns_, rows, ["100 % & more"], above="All rows: a_b.")


def test_means_stand_with_deviations_and_the_best_in_bold() -> None:
    text = latex(table())
    assert r"$\mathbf{75.0 \pm 7.1}$ & 3 of 3 \\" in text and r" & lezo & $70.0$ & 2 of 3 \\" in text
    assert r"sst2 & lezo & -- & -- \\" in text and text.count(r"\midrule") == 2
    assert r"sample standard deviation ($n - 1$)" in text
    assert r"task & method & test \% & \shortstack[r]{steps to\\target}" in text
    assert "All rows: a\\_b.\n100 \\% \\& more\n" in text


def test_no_text_is_a_command() -> None:
    text = latex(table(method=EVIL))
    assert r"50 \% of\_\{a\}\textbackslash{}input\{x\} \& \#1 \$y\$" in text
    assert r"$\pm$ $\star$ $10^{-7}$ $3 \cdot 10^{-5}$ a b" in text


def test_a_wide_table_is_narrowed() -> None:
    text = latex(table(columns=6))
    assert r"\footnotesize\setlength" in text and "steps to" not in text


def test_a_wide_table_keeps_what_has_room() -> None:
    names = ("test %", "setting", "steps to target", "dev %", "zero-shot perplexity")
    for width, gone in ((20, 0), (40, 1), (50, 2)):
        rows = [[Cell("1", 1.0), Cell("x" * width), *[Cell("1" * 11, 1.0)] * 3]]
        text = latex(Table("results", "x", names, rows))
        kept = [name for name in ("steps to", r"dev \%", "zero-shot") if name in text]
        assert kept == ["steps to", r"dev \%", "zero-shot"][gone:], width


def test_blocks_are_left_out_beside_sparsity() -> None:
    rows = [[Cell("0.5", 0.5), Cell("4 of 8 blocks skipped each step")]]
    assert "blocks" not in latex(Table("sparsity", "x", ("sparsity", "blocks"), rows))
    assert "blocks" in latex(Table("sparsity", "x", ("seeds", "blocks"), rows))


def test_lists_of_runs_are_not_for_papers() -> None:
    assert (
        carries_results(table()) and carries_results(table("roots-2")) and not carries_results(table("runs"))
    )


def test_it_compiles(tmp_path: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex on the PATH: no table was compiled")
    (tmp_path / "table.tex").write_text(latex(table(columns=9, method=EVIL)))
    main = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{table}\end{document}"
    (tmp_path / "main.tex").write_text(main)
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
