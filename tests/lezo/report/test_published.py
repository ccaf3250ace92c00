"""Published numbers stand beside the runs they are about, and beside no other."""

from pathlib import Path
from typing import Any

import pytest

from lezo.records.reader import Run, read_run
from lezo.report.published import beside, is_lezo, rows_of
from tests.lezo.run_folders import config, result, rows, write

BIG: dict[str, Any] = {"data__name": "hub", "model__name": "opt-13b", "optim__name": "mezo"}
MEZO = (
    "66.1 (MeZO paper (arXiv 2305.17333), Table 1); 71.36 ± 2.80 (AdaLeZO paper (arXiv 2604.18264), Table 6)"
)


def run_of(folder: Path, **changes: Any) -> Run:
    return read_run(write(folder, config(**(BIG | changes)), rows(), result()))


def test_mezo_has_both_papers_numbers(tmp_path: Path) -> None:
    assert beside(run_of(tmp_path)) == MEZO
    assert beside(run_of(tmp_path, model__name="hf", model__path="facebook/opt-13b")) == MEZO


def test_what_the_run_did_otherwise_is_named(tmp_path: Path) -> None:
    assert (
        beside(run_of(tmp_path, train__steps=100, task__num_dev=20))
        == f"{MEZO}; here task.num_dev 20, train.steps 100"
    )
    shown = beside(run_of(tmp_path, task__demos=4, optim__objective="f1"))
    assert shown == f"{MEZO}; here task.demos 4, optim.objective f1"
    demos = beside(run_of(tmp_path, optim__name="none", task__demos=32, task__demo_sets="one"))
    assert demos == "62.1 (MeZO paper (arXiv 2305.17333), Table 1); here task.demo_sets one"
    copa = beside(run_of(tmp_path, task__name="copa", task__num_dev=100))
    assert copa == "88.0 (MeZO paper (arXiv 2305.17333), Table 1)"


LORA = {"optim__eps": 0.01, "peft__rank": 8, "peft__alpha": 16, "peft__targets": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optim__name": "none"}, "59.6 ("),
        ({"optim__name": "none", "task__demos": 32}, "62.1 ("),
        (
            {"optim__name": "fo-adamw", "train__steps": 625, "train__batch_size": 8},
            "70.8 (MeZO paper (arXiv 2305.17333), Table 1)",
        ),
        (
            {"optim__name": "fo-adamw", "train__steps": 625, "train__batch_size": 8, "task__name": "wsc"},
            "63.5 (MeZO paper (arXiv 2305.17333), Table 1); here train.steps 625",
        ),
        ({"optim__name": "fo-sgd"}, "-"),
        ({"optim__name": "none", "task__demos": 4}, "-"),
        ({"model__name": "opt-66b", "task__name": "squad"}, "-"),
        ({"optim__name": "lezo"}, "none public"),
        ({"optim__name": "lezo", "peft__name": "lora"}, "none public"),
        ({"peft__name": "none"}, MEZO),
        ({"peft__name": "lora", **LORA}, "67.9 (MeZO paper (arXiv 2305.17333), Table 1)"),
        (
            {"peft__name": "lora", **LORA, "peft__rank": 64, "peft__targets": ["fc1"], "optim__eps": 0.5},
            "67.9 (MeZO paper (arXiv 2305.17333), Table 1); here optim.eps 0.5, peft.rank 64, peft.targets ['fc1']",
        ),
        (
            {"peft__name": "prefix", "optim__eps": 0.1, "peft__tokens": 5},
            "70.8 (MeZO paper (arXiv 2305.17333), Table 1); here the text's positions behind the prefix's",
        ),
        ({"peft__name": "head"}, "-"),
        (
            {"optim__name": "none", "task__demos": 32, "task__demo_sets": "each"},
            "62.1 (MeZO paper (arXiv 2305.17333), Table 1)",
        ),
        (
            {"optim__name": "icl", "task__demos": 32, "task__demo_sets": "each"},
            "62.1 (MeZO paper (arXiv 2305.17333), Table 1)",
        ),
        ({"optim__name": "lp"}, "68.6 (MeZO paper (arXiv 2305.17333), Table 1)"),
        ({"optim__name": "lp", "task__name": "copa"}, "-"),
        (
            {
                **{"optim__name": "fo-adamw", "peft__name": "head", "task__name": "squad"},
                **{"train__steps": 625, "train__batch_size": 8},
            },
            "3.7 (MeZO paper (arXiv 2305.17333), Table 1)",
        ),
        ({"optim__name": "fo-adamw", "peft__name": "lora"}, "-"),
        ({"optim__name": "adalezo"}, "71.72 ± 0.83 (AdaLeZO paper (arXiv 2604.18264), Table 6)"),
        (
            {"optim__name": "adalezo", "model__name": "llama-2-7b", "optim__keep": 0.4},
            "66.19 (AdaLeZO paper (arXiv 2604.18264), Table 5); here optim.keep 0.4",
        ),
        ({"optim__name": "adalezo", "peft__name": "lora"}, "-"),
    ],
)
def test_each_method_has_its_own(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    said = beside(run_of(tmp_path, **changes))
    assert said == expected or (expected.endswith("(") and said.startswith(expected))


@pytest.mark.parametrize(
    "changes",
    [
        {"data__name": "sample"},
        {"model__random_weights": True},
        {"data__name": None},
        {"model__name": "tiny"},
    ],
)
def test_nothing_published_stands_beside_sample_data_or_another_model(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = run_of(tmp_path, **changes)
    assert (rows_of(run), beside(run)) == ([], "-")


def test_a_result_that_says_synthetic_is_believed(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, config(**BIG), rows(), result(synthetic=True)))
    assert rows_of(run) == []


def test_no_number_of_lezo_is_invented(tmp_path: Path) -> None:
    published = rows_of(run_of(tmp_path))
    assert {row.method for row in published} == {
        "zero-shot",
        "ICL",
        "LP",
        "MeZO",
        "MeZO LoRA",
        "MeZO prefix",
        "FT",
        "AdaLeZO",
    }
    assert all(row.source.partition(", Table")[0].endswith(")") for row in published)


@pytest.mark.parametrize(
    "own",
    [
        {"data__path": "reviews.csv"},
        {"data__path": "rows/*.jsonl"},
        {"data__path": "rows", "data__columns": {"sentence": "Text"}},
        {"data__path": "rows", "task__name": "guests"},
    ],
)
def test_ones_own_rows_have_no_published_numbers_and_no_paragraph_on_lezos(
    tmp_path: Path, own: dict[str, Any]
) -> None:
    run = run_of(tmp_path, optim__name="lezo", **({"data__name": "local"} | own))
    assert (beside(run), rows_of(run), is_lezo(run)) == ("-", [], False)


def test_a_folder_in_the_published_layout_has_them(tmp_path: Path) -> None:
    assert is_lezo(run_of(tmp_path, optim__name="lezo", data__name="local", data__path="data"))
