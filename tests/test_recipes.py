"""Every recipe composes, says its command, and plans."""

import math
import shlex
from pathlib import Path

import pytest

from lezo.config.compose import compose
from lezo.config.diagnosis import CONF, GROUPS, options_of
from lezo.config.schema import ConfigError
from lezo.sweeps.jobs import jobs, recipe_values
from tests.lezo.refusals import refused
from tests.lezo.whole_runs import Runner

RECIPES = sorted((CONF / "experiment").glob("*.yaml"))


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").replace("=DIR", "=.").splitlines()


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_opens_with_its_command_what_it_reproduces_and_what_it_costs(file: Path) -> None:
    package, command, *rest = lines(file)
    head = "\n".join(line for line in rest if line.startswith("#"))
    assert package == "# @package _global_"
    assert command.startswith(f"# lezo-run -m +experiment={file.stem}")
    assert "Expected" in head and "# Cost: " in head
    cost = head.partition("# Cost: ")[2]
    assert ("hour" in cost or "minute" in cost) and ("GB" in cost or "gigabyte" in cost)
    assert "arXiv" in head or file.stem == "playground"


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_jobs_of_a_recipe_compose_and_are_as_many_as_it_says(file: Path) -> None:
    command, *others = [
        shlex.split(line.partition("lezo-run -m ")[2]) for line in lines(file) if "lezo-run -m " in line
    ]
    for other in others:
        compose([word.partition(",")[0] for word in other])
    swept = [value.split("=", 1) for value in recipe_values(command)]
    for key, values in swept:
        assert key not in GROUPS or {*values.split(",")} <= {*options_of(key, None)}
    compose([*command, *(f"{key}={values.split(',')[-1]}" for key, values in swept)])
    cost = next(line for line in lines(file) if line.startswith("# Cost: "))
    assert int(cost.split()[2]) == math.prod(len(values.split(",")) for _, values in swept)


def test_the_command_goes_before_the_recipe() -> None:
    found = jobs(["+experiment=playground", "optim=lezo", "seed=5", "train.steps=7"])
    assert [job.label for job in found] == ["task=rte", "task=sst2"]
    assert {job.composed.config.train.steps for job in found} == {7}


@pytest.mark.parametrize(
    "overrides", [["+experiment=playground,speed"], ["+experiment=speed", "+experiment=playground"]]
)
def test_one_recipe_a_command(overrides: list[str]) -> None:
    with refused(ConfigError, "+experiment=playground"):
        jobs(overrides)


def test_a_recipe_may_know_a_rate_for_each_of_its_methods_which_can_be_searched_around() -> None:
    evidence = ["+experiment=evidence", "data.path=."]
    found = jobs([*evidence, "seed=0", "optim=mezo,lezo", "optim.lr_scale=1,0.1"])
    rates = [getattr(job.composed.config.optim, "lr", None) for job in found]
    assert rates == [2e-5, 2e-6, 5e-5, 5e-6]
    with refused(ConfigError, "optim.lr: ", "add optim.lr="):
        compose([*evidence, "optim=fo-sgd"])


def test_rte_of_the_evidence_has_rates_of_its_own_and_is_otherwise_alike() -> None:
    kept = {}
    for name in ("evidence", "evidence-rte"):
        words = [f"+experiment={name}", "data.path=.", "seed=0", "optim=mezo,lezo,adalezo"]
        kept[name] = [job.composed.config for job in jobs(words)]
    rates = {name: [getattr(config.optim, "lr", None) for config in found] for name, found in kept.items()}
    assert rates == {"evidence": [2e-5, 5e-5, 2e-5], "evidence-rte": [5e-5, 1.25e-4, 2e-5]}
    assert [{config.task.name for config in found} for found in kept.values()] == [{"sst2"}, {"rte"}]
    for one, other in zip(*kept.values(), strict=True):
        assert one.train == other.train and one.model == other.model
        assert (one.task.num_train, one.task.num_dev) == (other.task.num_train, other.task.num_dev)


def test_runs_that_two_recipes_of_the_evidence_ask_for_are_the_same() -> None:
    whole, ablation = (
        {job.identity: job.folder for job in jobs([f"+experiment={name}", "data.path=.", "seed=0"])}
        for name in ("evidence", "evidence-sparsity")
    )
    (shared,) = whole.keys() & ablation.keys()
    assert whole[shared] == ablation[shared]


def test_a_comparison_is_fair_to_all_methods() -> None:
    found = [job.composed.config for job in jobs(["+experiment=compare", "seed=0"])]
    spent = {config.train.steps * config.method.forwards_a_step(config.optim) for config in found}
    assert max(spent) == 1000 and min(spent) > 1000 - 10
    assert {-(-config.train.steps // config.train.eval_every) for config in found} == {10}
    assert {config.optim.name for config in found} > {"fo-sgd", "mezo", "lezo"}
    rates: dict[str, list[float]] = {}
    for config in found:
        rates.setdefault(config.optim.name, []).append(getattr(config.optim, "lr", 0.0))
    assert {tuple(round(rate / of[1], 6) for rate in of) for of in rates.values()} == {(0.3, 1.0, 3.0)}


def test_without_m_a_recipe_is_one_run() -> None:
    config = compose(["+experiment=opt-30b-lezo"]).config
    assert (config.model.name, config.optim.name, config.train.eval_every) == ("opt-30b", "lezo", 20000)


PLANNED = ["opt-30b-lezo", "opt-13b-first-order", "opt-13b-icl", "opt-30b-prefix", "adalezo-opt-6.7b"]


@pytest.mark.parametrize("recipe", PLANNED)
def test_a_recipe_plans_without_its_weights(recipe: str, lezo_run: Runner, shared: Path) -> None:
    random = ["model.random_weights=true", f"model.tokenizer={shared / 'tokenizers' / 'opt'}"]
    data = ["data=local", f"data.path={shared / 'data'}"]
    ran = lezo_run(f"+experiment={recipe}", *random, *data, "dry_run=true")
    assert ran.code == 0
    assert "expected (weights " in ran.out and "rte (local)" in ran.out
