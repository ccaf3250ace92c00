"""Which runs are samples of one setting, and what the target is."""

from pathlib import Path

import pytest

from lezo.records.reader import Reader
from lezo.report.groups import Group, by_task, group_runs, sparsity_families, spread, target
from tests.lezo.run_folders import config, finished, result, rows, write


def read(folder: Path) -> list[Group]:
    return group_runs(Reader().runs([folder]))


def test_runs_that_differ_in_seeds_and_in_what_changes_no_result_are_one_group(tmp_path: Path) -> None:
    finished(tmp_path / "a", test=0.7)
    finished(tmp_path / "b", seed=1, test=0.8, log__group="g", train__checkpoint_every=5, model__device="cpu")
    finished(tmp_path / "c", task__data_seed=1, test=0.9)
    (group,) = read(tmp_path)
    found = group.result("test")
    assert found is not None
    assert (found.mean, found.std) == (pytest.approx(0.8), pytest.approx(0.1))


def test_a_run_repeated_is_no_further_sample_and_an_unfinished_one_none(tmp_path: Path) -> None:
    finished(tmp_path / "2026-01-01", test=0.7)
    finished(tmp_path / "2026-01-02", test=0.8)
    write(tmp_path / "x", config(seed=1), rows((0.7,)))
    (group,) = read(tmp_path)
    found = group.result("test")
    assert found is not None and (found.mean, found.std, len(group.finished), len(group.runs)) == (
        0.8,
        None,
        1,
        3,
    )


def test_the_setting_names_what_sets_groups_apart(tmp_path: Path) -> None:
    finished(tmp_path / "a", optim__lr=1e-6)
    finished(tmp_path / "b", optim__lr=1e-7)
    finished(tmp_path / "c", optim__lr=1e-7, train__batch_size=8)
    finished(tmp_path / "d", optim__name="mezo", optim__lr=1e-7)
    assert [(group.method, group.setting) for group in read(tmp_path)] == [
        ("lezo", "lr 1e-07, eps 0.001, sparsity 0.75, train.batch_size 16"),
        ("lezo", "lr 1e-07, eps 0.001, sparsity 0.75, train.batch_size 8"),
        ("lezo", "lr 1e-06, eps 0.001, sparsity 0.75, train.batch_size 16"),
        ("mezo", "lr 1e-07, eps 0.001"),
    ]


def test_a_run_without_configuration_is_set_apart_by_its_result(tmp_path: Path) -> None:
    said = {"task": "rte", "data": "sample", "model": "tiny", "optim": "lezo", "eps": 0.001, "seed": 0}
    write(tmp_path / "a", ended=result(**said, lr=0.1, sparsity=0.5))
    write(tmp_path / "b", ended=result(**said, lr=0.2, sparsity=0.5))
    assert [group.setting for group in read(tmp_path)] == [
        "lr 0.1, eps 0.001, sparsity 0.5",
        "lr 0.2, eps 0.001, sparsity 0.5",
    ]


def test_the_target_is_what_every_finished_run_reached(tmp_path: Path) -> None:
    finished(tmp_path / "a", (0.7, 0.6, 0.4), optim__name="mezo")
    finished(tmp_path / "b", (0.7, 0.55, 0.5, 0.52))
    write(tmp_path / "c", config(seed=1), rows((0.7, 0.65)))
    members = read(tmp_path)
    aim = target(members, None, None)
    assert aim is not None
    assert aim.words == "a dev loss of 0.5000, the lowest that every finished run reached"
    lezo, mezo = members
    found = [aim.reached(run) for run in (*mezo.runs, *lezo.runs)]
    assert [dev and (dev.step, dev.seconds) for dev in found] == [(4, 0.8), (4, 0.8), None]
    asked = target(members, None, 0.6)
    assert asked is not None and [dev and dev.step for dev in map(asked.reached, mezo.runs)] == [2]
    lower = target(members, 0.4, None)
    assert lower is not None and [lower.reached(run) for run in lezo.runs] == [None, None]


def test_a_target_that_is_no_gain_is_called_that_and_without_a_finished_run_there_is_none(
    tmp_path: Path,
) -> None:
    finished(tmp_path / "a", (0.7, 0.9))
    aim = target(read(tmp_path), None, None)
    assert aim is not None and "no better than before training" in aim.words
    write(tmp_path / "other", config(), rows())
    assert target(read(tmp_path / "other"), None, None) is None


def test_only_runs_that_differ_in_nothing_but_sparsity_are_an_ablation(tmp_path: Path) -> None:
    for number, sparsity in enumerate((0.75, 0.25)):
        finished(tmp_path / str(number), optim__sparsity=sparsity)
    finished(tmp_path / "mezo", optim__name="mezo")
    finished(tmp_path / "other-lr", optim__sparsity=0.5, optim__lr=0.1)
    finished(tmp_path / "other-task", optim__sparsity=0.5, task__name="sst2")
    families = [f for members in by_task(read(tmp_path)).values() for f in sparsity_families(members)]
    assert [[group.sparsity for group in family] for family in families] == [[0.0, 0.25, 0.75]]


def test_no_value_has_no_spread() -> None:
    assert spread([None, None]) is None


def test_of_a_grid_of_learning_rates_the_lowest_mean_dev_loss_is_best_whatever_the_test_says(
    tmp_path: Path,
) -> None:
    for rate, losses, test in ((1e-6, (0.6, 0.5), 0.9), (1e-7, (0.4, 0.5), 0.1), (1e-5, (0.3, 0.9), 0.5)):
        for seed, loss in enumerate(losses):
            ended = result(test=test, dev_loss=loss)
            write(tmp_path / f"{rate}-{seed}", config(optim__lr=rate, seed=seed), rows(), ended)
    write(tmp_path / "left", config(optim__lr=1e-4), rows((0.1,)))  # unfinished: cannot be chosen
    finished(tmp_path / "other", optim__lr=1e-8, optim__sparsity=0.5)  # another setting: no part of the grid
    marked = {group.setting: (group.rates, group.best) for group in read(tmp_path)}
    rest = "eps 0.001, sparsity 0.75"
    assert marked == {
        f"lr 1e-07, {rest}": (3, True),
        f"lr 1e-06, {rest}": (3, False),
        f"lr 1e-05, {rest}": (3, False),
        f"lr 0.0001, {rest}": (3, False),
        "lr 1e-08, eps 0.001, sparsity 0.5": (1, True),
    }


def test_of_a_grid_with_one_finished_rate_none_is_chosen(tmp_path: Path) -> None:
    finished(tmp_path / "a", optim__lr=1e-6)
    write(tmp_path / "b", config(optim__lr=1e-7), rows((0.1,)))
    assert [group.rates for group in read(tmp_path)] == [1, 1]


def test_adapters_are_methods_of_their_own_and_folders_that_know_of_none_have_none(tmp_path: Path) -> None:
    finished(tmp_path / "old", optim__name="mezo")
    full = {"peft__name": "none", "peft__lr": {"zo": 0.001}, "model__lora_lr": {"zo": 0.1}}
    finished(tmp_path / "new", optim__name="mezo", seed=1, **full)
    finished(tmp_path / "prefix", optim__name="mezo", peft__name="prefix", peft__lr={"zo": 0.1})
    for rank in (4, 8):
        finished(tmp_path / f"lora{rank}", optim__name="mezo", peft__name="lora", peft__rank=rank)
    assert [(group.method, group.setting, len(group.runs)) for group in read(tmp_path)] == [
        ("mezo", "lr 0.001, eps 0.001", 2),
        ("mezo + lora", "lr 0.001, eps 0.001, peft.rank 4", 1),
        ("mezo + lora", "lr 0.001, eps 0.001, peft.rank 8", 1),
        ("mezo + prefix", "lr 0.001, eps 0.001", 1),
    ]


def test_demonstrations_and_the_like_are_named_even_where_all_runs_have_them(tmp_path: Path) -> None:
    asked = {"task__demos": 32, "task__demo_sets": "each", "eval__calibration": "domain"}
    finished(
        tmp_path / "a", optim__name="none", optim__lr=None, optim__eps=None, optim__sparsity=None, **asked
    )
    finished(tmp_path / "b", optim__name="mezo", optim__objective="f1")
    assert [(group.method, group.setting) for group in read(tmp_path)] == [
        ("mezo", "lr 0.001, eps 0.001, objective f1"),
        ("none", "task.demos 32, task.demo_sets each, eval.calibration domain"),
    ]


def test_a_setting_that_an_old_folder_lacks_had_the_default_of_now(tmp_path: Path) -> None:
    finished(tmp_path / "old")
    finished(tmp_path / "new", seed=1, train__max_bad_steps=10, optim__rounding="nearest", eval__batch_size=8)
    finished(tmp_path / "other", seed=2, optim__rounding="stochastic")
    assert [(group.setting, len(group.runs)) for group in read(tmp_path)] == [
        ("lr 0.001, eps 0.001, sparsity 0.75, rounding nearest", 2),
        ("lr 0.001, eps 0.001, sparsity 0.75, rounding stochastic", 1),
    ]


def test_lora_is_another_ablation_than_full_weights(tmp_path: Path) -> None:
    for name in ("none", "lora"):
        finished(tmp_path / f"{name}-mezo", optim__name="mezo", peft__name=name)
        finished(tmp_path / f"{name}-lezo", peft__name=name)
    families = [f for members in by_task(read(tmp_path)).values() for f in sparsity_families(members)]
    assert [[group.method for group in family] for family in families] == [
        ["mezo", "lezo"],
        ["mezo + lora", "lezo + lora"],
    ]


def test_curves_have_one_run_a_seed_the_one_that_came_furthest(tmp_path: Path) -> None:
    write(tmp_path / "a", config(), rows((0.7, 0.6, 0.5, 0.4)))
    finished(tmp_path / "b", (0.7, 0.6))
    write(tmp_path / "c", config(), rows((0.7,)))
    write(tmp_path / "d", config(seed=1), rows((0.7, 0.6)))
    write(tmp_path / "e", config(seed=1), rows((0.7,)))
    (group,) = read(tmp_path)
    assert [Path(run.folder).name for run in group.samples] in (["b", "d"], ["d", "b"])


@pytest.mark.parametrize(("optim", "count"), [("lp", 1), ("mezo", 2)])
def test_runs_that_take_no_step_are_the_same_whatever_training_says(
    optim: str, count: int, tmp_path: Path
) -> None:
    for n in (5, 6):
        finished(tmp_path / str(n), optim__name=optim, train__steps=n)
    assert len(group_runs(Reader().runs([tmp_path]))) == count


def test_a_perplexity_is_a_target_to_come_down_to_and_known_before_there_is_a_result(tmp_path: Path) -> None:
    scored = [
        {**row, "dev_score": score}
        for row, score in zip(rows((2.0, 1.5, 1.0), every=0), (None, None, 4.5, 2.7), strict=True)
        if "dev_loss" in row
    ]
    steps = [{**row, "step": step} for step, row in enumerate(scored)]
    for name, ended in (("going", None), ("done", result(metric="perplexity", test=2.8))):
        write(
            tmp_path / name,
            config(task__name="chat", task__chat_template=None, task__data_seed=len(name)),
            steps,
            ended,
        )
    (group,) = read(tmp_path)
    assert group.in_perplexity and all(run.in_perplexity for run in group.runs)
    asked = target([group], None, 4.0)
    assert asked is not None and asked.words == "a dev perplexity of at most 4 (report.target_score)"
    assert [dev and dev.step for dev in map(asked.reached, group.runs)] == [2, 2]
    fraction = target([group], None, 0.5)
    assert fraction is not None and "a dev loss of" in fraction.words
