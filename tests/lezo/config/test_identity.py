"""Which changes of a configuration make another run of it."""

import re
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lezo.config import identity
from lezo.config.compose import compose
from lezo.config.identity import config_hash, differences, job_name, run_hash, run_name, settings, within


@cache
def composed(*overrides: str) -> str:
    return compose(["train.steps=100", *overrides]).yaml


def yaml(*changes: str, groups: tuple[str, ...] = ()) -> str:
    """A configuration of these ``groups`` in which these keys have another value, which takes no composing."""
    tree = OmegaConf.create(composed(*groups))
    tree.merge_with_dotlist([*changes])
    return OmegaConf.to_yaml(tree)


BASE = yaml()


@pytest.mark.parametrize(
    "change",
    [
        *("log.project=x", "log.name=x", "log.notes=x", "log.artifact=true", "log.tensorboard=true"),
        *("resume=auto", "dry_run=true", "sweep.slots=2", "bench.repeats=3"),
        *("sweep.retry_failed=true", "sweep.best=true", "sweep.share_zero_shot=false"),
        *("model.cuda_graphs=false", "model.devices=auto"),
    ],
)
def test_settings_apart_from_the_run_change_neither_hash_nor_run(change: str) -> None:
    assert config_hash(yaml(change)) == config_hash(BASE)
    assert differences(BASE, yaml(change)) == []


def test_groups_apart_from_the_run_change_neither_hash_nor_run() -> None:
    other = composed("log=wandb", "hydra.run.dir=x")
    assert config_hash(other) == config_hash(composed()) and differences(composed(), other) == []


@pytest.mark.parametrize(
    "change",
    [
        *("train.steps=101", "train.max_seconds=5.0", "save_model=true", "train.checkpoint_every=5"),
        *("model.device=cpu", "train.micro_batch_size=4", "eval.batch_size=4"),
    ],
)
def test_a_run_goes_on_under_these_though_they_make_another_job(change: str) -> None:
    assert config_hash(yaml(change)) != config_hash(BASE)
    before = yaml("train.max_seconds=4.0") if "max_seconds" in change else BASE
    assert differences(before, yaml(change)) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("seed=1", "seed was 0 and is 1"),
        ("train.steps=99", "train.steps was 100 and is 99"),
        ("train.max_seconds=9.0", "train.max_seconds was unset and is 9.0"),
        ("optim.sparsity=0.5", "optim.sparsity was 0.75 and is 0.5"),
        ("model.dtype=float16", "model.dtype was auto and is float16"),
    ],
)
def test_other_changes_are_named(change: str, problem: str) -> None:
    assert differences(BASE, yaml(change)) == [problem]
    assert config_hash(yaml(change)) != config_hash(BASE)


def test_every_change_is_named() -> None:
    changed = differences(BASE, yaml("seed=1", groups=("optim=mezo",)))
    assert changed == [
        "optim.name was lezo and is mezo",
        "optim.sparsity was 0.75 and is unset",
        "seed was 0 and is 1",
    ]


@pytest.mark.parametrize("optim", ["fo-sgd", "lezo"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_ends_cannot_grow(optim: str, schedule: str) -> None:
    groups = (f"optim={optim}", f"optim.schedule={schedule}")
    first, more = yaml(groups=groups), yaml("train.steps=200", groups=groups)
    assert differences(first, more) == [
        f"train.steps was 100 and is 200 (its {schedule} schedule ends there)"
    ]


LATER = ("schedule", "warmup", "clip", "probes")


def test_a_base_that_is_not_quantised_is_that_of_before() -> None:
    tree = OmegaConf.create(BASE)
    del tree.model.quantization
    before = OmegaConf.to_yaml(tree)
    assert (config_hash(before), run_hash(before)) == (config_hash(BASE), run_hash(BASE))
    assert differences(before, BASE) == []
    changed = differences(before, yaml("model.quantization=4bit"))
    assert changed == ["model.quantization was none and is 4bit"]


@pytest.mark.parametrize(("optim", "later"), [("lezo", LATER), ("fo-sgd", ("warmup",))])
def test_settings_that_came_later_are_no_other_run_where_they_change_nothing(
    optim: str, later: tuple[str, ...]
) -> None:
    now = yaml(groups=(f"optim={optim}",))
    tree = OmegaConf.create(now)
    for name in later:
        del tree.optim[name]
    before = OmegaConf.to_yaml(tree)
    assert (config_hash(before), run_hash(before)) == (config_hash(now), run_hash(now))
    assert differences(before, now) == differences(now, before) == []
    assert settings(before) == settings(now)
    for name, other in (("schedule", "cosine"), ("warmup", 3), ("clip", 1.0), ("probes", 2)):
        if name in later:
            changed = yaml(f"optim.{name}={other}", groups=(f"optim={optim}",))
            usual = "unset" if name == "clip" else settings(now)[f"optim.{name}"]
            assert differences(before, changed) == [f"optim.{name} was {usual} and is {other}"]
            assert run_hash(changed) != run_hash(before)


def test_lengths_that_came_later_are_no_other_run_where_they_are_the_usual_ones() -> None:
    now = yaml()
    tree = OmegaConf.create(now)
    del tree.eval.max_new_tokens, tree.model.max_length
    before = OmegaConf.to_yaml(tree)
    assert (config_hash(before), run_hash(before)) == (config_hash(now), run_hash(now))
    assert differences(before, now) == differences(now, before) == []
    for key, usual, other in (("eval.max_new_tokens", "50", 60), ("model.max_length", "unset", 99)):
        changed = yaml(f"{key}={other}")
        assert differences(before, changed) == [f"{key} was {usual} and is {other}"]
        assert run_hash(changed) != run_hash(before)


def test_a_described_task_is_its_settings() -> None:
    given = ("task.template='{{a}}'", "task.label_column=b", "task.words={x: one, y: two}")
    one = yaml(groups=("task=prompt", *given))
    other = yaml("task.template=b", "task.words.y=three", groups=("task=prompt", *given))
    assert config_hash(one) != config_hash(other)
    assert run_hash(one) != run_hash(other)
    assert job_name(one).rpartition("-")[2] != job_name(other).rpartition("-")[2]
    template = "task.template was {{a}} and is b"
    assert differences(one, other) == [template, "task.words.y was two and is three"]


def test_a_job_is_named_by_what_it_is_and_its_hash() -> None:
    one = yaml("seed=3", groups=("optim=mezo",))
    assert job_name(one) == f"rte-tiny-mezo-seed3-{config_hash(one)[:8]}"
    assert job_name(yaml("model.name=opt-1.3b")).startswith("rte-opt-1.3b-lezo-seed0-")


@pytest.mark.parametrize("name", ["../../up", "a/b\\c", "..", "x" * 300, "grüße {é}", "-rf", "\n"])
def test_a_name_from_a_users_files_makes_one_folder(name: str, tmp_path: Path) -> None:
    tree = OmegaConf.create(BASE)
    tree.model.name = name
    folder = job_name(OmegaConf.to_yaml(tree))
    assert ".." not in folder and len(folder) < 120 and folder.isprintable()
    (tmp_path / "in" / folder).mkdir(parents=True)
    assert [path.name for path in (tmp_path / "in").iterdir()] == [folder]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(("task", "num_dev"), [("rte", 500), ("cb", 100), ("copa", 100)])
def test_sizes_left_open_are_the_published_ones_that_configurations_once_said(
    task: str, num_dev: int
) -> None:
    left = yaml(f"task.name={task}")
    said = yaml(f"task.name={task}", "task.num_train=1000", f"task.num_dev={num_dev}")
    assert "num_dev: null" in left and f"num_dev: {num_dev}" in said
    assert (config_hash(left), run_hash(left)) == (config_hash(said), run_hash(said))
    assert differences(said, left) == differences(left, said) == []
    assert settings(left) == settings(said)


def test_a_size_that_followed_the_rows_is_not_a_given_one() -> None:
    own = ["data.name=local", "data.path=."]
    left, said = yaml(*own), yaml(*own, "task.num_dev=500")
    assert differences(left, said) == ["task.num_dev was unset and is 500"]
    assert differences(said, left) == []  # as an earlier version said it


def test_settings_of_rows_of_ones_own_came_later() -> None:
    now, tree = yaml(), OmegaConf.create(yaml())
    for name in ("config", "columns", "splits", "test_share"):
        del tree.data[name]
    before = OmegaConf.to_yaml(tree)
    assert (config_hash(before), run_hash(before)) == (config_hash(now), run_hash(now))
    assert differences(before, now) == differences(now, before) == [] and settings(before) == settings(now)
    changed = yaml("data.test_share=0.5", "data.columns.label=Class", "data.splits.test=b.csv")
    assert differences(before, changed) == [
        "data.columns.label was unset and is Class",
        "data.splits.test was unset and is b.csv",
        "data.test_share was 0.2 and is 0.5",
    ]
    assert run_hash(changed) != run_hash(before)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((), "rte-tiny-lezo-seed0"),
        (("seed=3", "peft=lora", "optim=mezo"), "rte-tiny-mezo-lora-seed3"),
        (("optim.lr=1e-6", "optim.sparsity=0.5"), "rte-tiny-lezo-lr1e-6-sparsity0.5-seed0"),
        (("train.eval_every=50", "task.num_dev=8", "data=sample"), "rte-tiny-lezo-seed0"),
        (("optim.lr_scale=3", "train.forwards=100"), "rte-tiny-lezo-lr0.0009-steps50-seed0"),
        (("model=hf", "model.path=a/b-1", "optim.lr=1e-3", "data=sample"), "rte-b-1-lezo-lr0.001-seed0"),
        (("peft=lora", "peft.targets=[k_proj,fc1]"), "rte-tiny-lezo-lora-targetsk_proj+fc1-seed0"),
        (("log.name=mine", "optim.lr=1e-3"), "mine"),
        (
            ("optim=none", "train.steps=9", "train.batch_size=4", "task.num_train=64"),
            "rte-tiny-none-num_train64-seed0",
        ),
    ],
)
def test_a_run_has_a_readable_name_with_what_its_command_says(words: tuple[str, ...], name: str) -> None:
    assert compose(words).name == name


def test_a_run_that_is_read_back_has_its_name() -> None:
    assert run_name(yaml("seed=2")) == "rte-tiny-lezo-seed2"


def rules_of_resume() -> tuple[set[str], set[str]]:
    """The settings that docs/runs.md names in the columns of what may change and what may not."""
    page = (Path(__file__).parents[3] / "docs" / "runs.md").read_text(encoding="utf-8")
    table = page.partition("| may change")[2].partition("\n\n")[0].splitlines()[2:]
    may, may_not = zip(*(line.strip("| ").split(" | ") for line in table), strict=True)
    return ({*re.findall(r"`([\w.]+)`", " ".join(column))} for column in (may, may_not))  # type: ignore[return-value]


def test_the_page_lists_what_may_change_while_a_run_goes_on() -> None:
    may, may_not = rules_of_resume()
    compared = (*identity.IGNORED, *identity.CHANGEABLE, *identity._BY_HASH, *identity.UP_TO_ROUNDING)
    assert may == {*compared, *identity._MAY_GROW}
    known = {key: value for key, value in settings(BASE).items() if not within(key, tuple(may))}
    assert not [key for key in known if not within(key, tuple(may_not))]
    named = [key for key in may_not if key in known]
    assert {"train.batch_size", "train.eval_every", "model.dtype", "seed"} <= {*named}
    for key in named:
        assert differences(BASE, yaml(f"{key}=7")), key
