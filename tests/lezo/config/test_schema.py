"""The rules about values, and the defaults that the papers give."""

from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from lezo.config.checks import check
from lezo.config.compose import compose
from lezo.config.methods import (
    METHODS,
    Composition,
    FirstOrderConfig,
    LezoConfig,
    Objective,
    OptimConfig,
    Part,
)
from lezo.config.schema import (
    PEFT_SCHEMAS,
    Calibration,
    ConfigError,
    DataConfig,
    DType,
    Home,
    LogConfig,
    LoraConfig,
    ModelConfig,
    PeftConfig,
    PrefixConfig,
    RunConfig,
    WandbMode,
)
from lezo.config.task import DemoSets, TaskConfig
from tests.lezo.refusals import names

SGD, ADAMW = (FirstOrderConfig(name=name, lr=0.1) for name in ("fo-sgd", "fo-adamw"))
NONE = OptimConfig(name="none")

WHOLE_1 = "a whole number from 1 to 1000000000"
WHOLE_0 = "a whole number from 0 to 1000000000"
ABOVE_0 = "a number above 0"
BELOW_1 = "a number from 0 to below 1"
SEED = "a whole number from 0 to 4294967295"
NAN, INF = float("nan"), float("inf")

NO_DEVICES = [
    "cuda",
    "cuda:0",
    [],
    ["cuda:0", "cuda:0"],
    ["cuda:0", "cpu"],
    ["cuda"],
    ["gpu"],
    [["cpu"]],
    {},
    2,
]
RANGES = [
    ("seed", [0, 2**32 - 1], [-1, 2**32], SEED),
    ("task.data_seed", [0], [-1], SEED),
    ("task.num_train", [1], [-1], WHOLE_0),
    ("task.num_dev", [1], [-1], WHOLE_0),
    ("task.num_test", [1, None], [0], WHOLE_1),
    ("task.demos", [0, 999], [-1], WHOLE_0),
    ("model.device", ["auto", "cpu", "cuda", "cuda:3"], ["tpu", "cuda:x", ""], "auto, cpu, cuda or cuda:N"),
    ("model.bos", [0, None], [-1], WHOLE_0),
    ("model.max_length", [1, None], [0], WHOLE_1),
    ("model.quantization", ["none"], ["2bit", ""], "none"),
    ("optim.lr", [1e-9], [0.0, -1.0, NAN, INF], ABOVE_0),
    ("optim.eps", [1e-3], [0.0, NAN], ABOVE_0),
    ("optim.sparsity", [0.0, 1.0], [1.5, -0.1, NAN], "the fraction of decoder blocks skipped each step"),
    ("optim.weight_decay", [0.0, 0.1], [-0.1, INF], "a number of at least 0"),
    ("optim.momentum", [0.0, 0.9], [1.0, -0.1], BELOW_1),
    ("optim.clip_norm", [1.0, None], [0.0], ABOVE_0),
    ("optim.clip", [1.0, None], [0.0, NAN], ABOVE_0),
    ("optim.warmup", [0, 5000], [-1], WHOLE_0),
    ("optim.rank", [1, 1000], [0, 1001], "a whole number from 1 to 1000"),
    ("optim.probes", [1, 1000], [0, 1001], "a whole number from 1 to 1000"),
    ("optim.dropout", [0.0, None], [1.0], BELOW_1),
    ("optim.keep", [0.01, 1.0], [0.0, 1.1, NAN], "above 0, at most 1"),
    ("optim.top", [0.01, 1.0], [0.0, 1.1, NAN], "above 0, at most 1"),
    ("optim.tau", [0.1], [0.0, NAN], ABOVE_0),
    ("optim.gamma", [0.0, 1.0], [-0.1, 1.1], "a number from 0 to 1"),
    ("optim.alpha", [0.0, 1.0], [1.1, -0.1], "a number from 0 to 1"),
    ("optim.importance_clip", [4.0, None], [0.0, NAN], ABOVE_0),
    ("optim.period", [1], [0], WHOLE_1),
    ("optim.blocks", [[], [0, 3, -1]], [3, ["a"], [0.5], [True]], "a list of block numbers"),
    ("optim.beta", [0.0, 0.9], [1.0, -0.1], BELOW_1),
    ("optim.beta1", [0.0, 0.9], [1.0, -0.1], BELOW_1),
    ("optim.beta2", [0.0, 0.999], [1.0, -0.1], BELOW_1),
    ("optim.adam_eps", [1e-8], [0.0, NAN], ABOVE_0),
    ("train.steps", [1, 10**9], [0, -3, 10**9 + 1, 10**12], WHOLE_1),
    ("train.batch_size", [1], [0], WHOLE_1),
    ("train.micro_batch_size", [1, None], [0], WHOLE_1),
    ("train.eval_every", [1], [0], WHOLE_1),
    ("train.max_seconds", [0.5, None], [0.0], ABOVE_0),
    ("train.max_bad_steps", [1], [0], WHOLE_1),
    ("train.rank_timeout", [0.5], [0.0], ABOVE_0),
    ("eval.batch_size", [1], [0], WHOLE_1),
    ("eval.max_new_tokens", [1], [0], WHOLE_1),
    ("train.checkpoint_every", [1, None], [0], WHOLE_1),
    ("train.keep_checkpoints", [1], [0], WHOLE_1),
    ("peft.rank", [1], [0], WHOLE_1),
    ("peft.alpha", [1], [0], WHOLE_1),
    ("peft.targets", [["fc1"]], [[], ["a", ["b"]]], "a list of names"),
    ("peft.tokens", [1], [0], WHOLE_1),
    (
        "model.devices",
        ["auto", ["cuda:0", "cuda:1"], ["cpu", "cpu"], None],
        NO_DEVICES,
        "different CUDA devices",
    ),
    ("train.forwards", [1, None], [0], WHOLE_1),
    ("train.evaluations", [1, None], [0], WHOLE_1),
    ("optim.lr_scale", [0.3, None], [0.0, -1.0], "above 0"),
    ("sweep.slots", [1, None], [0], WHOLE_1),
    ("sweep.gpus_per_job", [1], [0], WHOLE_1),
    ("log.name", ["a b", "1"], ["", " ", "x" * 129], "a line of text, of at most 128 characters"),
    ("log.tags", [[], ["a", "1"]], [[["a"]], ["a", {"b": 1}]], "a list of texts"),
    ("inspect.n", [1], [0, 10**30], WHOLE_1),
    (
        "data.columns",
        [{}, {"label": "Class", "a": 1}],
        ["label", ["a"], {"a": ["b"]}, 3],
        "the task's columns, each with",
    ),
    (
        "data.splits",
        [{}, {"train": "a", "dev": None}],
        ["a", {"val": "a"}, {"test": 1}],
        "files or splits for train, dev",
    ),
    ("data.test_share", [0.01, 0.99], [0.0, 1.0, -0.1, NAN], "a number above 0 and below 1"),
    ("bench.repeats", [1, None], [0], WHOLE_1),
    ("bench.textbook_repeats", [1, None], [0], WHOLE_1),
    ("bench.window", [0, None], [-1], WHOLE_0),
]
GOOD = [(key, value) for key, good, _, _ in RANGES for value in good]
BAD = [(key, value, words) for key, _, bad, words in RANGES for value in bad]
OWN = {"data.name": "local", "data.path": "."}
AROUND = {"data.columns": OWN, "data.splits": OWN, "data.test_share": OWN}  # what makes a key mean something


def problems(changes: dict[str, Any], *, weights: bool = True) -> list[str]:
    """What check finds wrong with the default run after ``changes`` of its keys."""
    config = RunConfig(
        task=TaskConfig(name="rte"),
        data=DataConfig(name="sample"),
        optim=LezoConfig(name="lezo", lr=1e-3),
        model=ModelConfig(name="tiny"),
        peft=PeftConfig(name="none"),
        log=LogConfig(),
    )
    if any(key.startswith("peft.") for key in changes):
        config.peft = PrefixConfig("prefix") if "peft.tokens" in changes else LoraConfig("lora")
    for key in (key.removeprefix("optim.") for key in changes if key.startswith("optim.")):
        if not hasattr(config.optim, key):  # of another method
            method = next(one for one in METHODS.values() if hasattr(one.schema(), key))
            config.optim = method.schema(name=method.name)
            config.optim.lr = 1e-3  # type: ignore[attr-defined]
    for key, value in changes.items():
        *path, last = key.split(".")
        owner: Any = config
        for name in path:
            owner = getattr(owner, name)
        setattr(owner, last, value)
    try:
        check(config, weights=weights)
    except ConfigError as error:
        assert str(error) == "\n".join(error.problems)
        return error.problems
    return []


def test_every_range_has_its_cases() -> None:
    run = RunConfig()
    groups = [("", run), *((f"{one.name}.", getattr(run, one.name)) for one in fields(run))]
    groups += [("optim.", method.schema()) for method in METHODS.values()]
    groups += [("peft.", schema()) for schema in PEFT_SCHEMAS.values()]
    said = {
        path + one.name
        for path, group in groups
        if is_dataclass(group)
        for one in fields(group)
        if "range" in one.metadata
    }
    assert {key for key, *_ in RANGES} == said


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_values_in_range_pass(key: str, value: Any) -> None:
    assert problems({key: value, **AROUND.get(key, {})}) == []


@pytest.mark.parametrize(("key", "value", "words"), BAD)
def test_values_out_of_range_name_value_and_expectation(key: str, value: Any, words: str) -> None:
    (problem,) = problems({key: value, **AROUND.get(key, {})})
    assert problem.startswith(f"{key}={value}: expected ") and words in problem


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data.name": None}, ["data: model=tiny", "data=local data.path=DIR, data=hub or data=sample"]),
        ({"data.name": "local"}, ["data=local: ", "data.path=FILE"]),
        ({"data.path": "."}, ["data.path=.: ", "data=local"]),
        ({"data.name": "local", "data.path": "/no/where"}, ["data.path=/no/where: "]),
        ({"data.name": "local", "data.path": ""}, ["data.path=: "]),
        ({"data.name": "local", "data.path": "~no-such-user/x"}, ["data.path=~no-such-user/x: "]),
        ({"data.name": "local", "data.path": "x" * 300}, ["data.path=xxx"]),
        ({"data.name": "local", "data.path": "a\0b"}, [r"data.path=a\x00b: "]),
        ({"data.revision": "main"}, ["data.revision=main: ", "data=hub"]),
        ({"data.config": "plain"}, ["data.config=plain: ", "data=hub data.path=OWNER/NAME"]),
        ({"data.columns": {"a": "b"}}, ["data.columns={'a': 'b'}: ", "data=local data.path=FILE"]),
        (
            {"data.name": "hub", "data.splits": {"train": "b"}},
            ["data.splits={'train': 'b'}: ", "data=local data.path=FILE"],
        ),
        ({"data.test_share": 0.5}, ["data.test_share=0.5: ", "data=local data.path=FILE"]),
        (
            {"data.name": "hub", "data.path": "a/b"},
            ["data.path=a/b: ", "task=rte", "aps/super_glue", "data=local"],
        ),
        ({"task.name": "mine"}, ["task: ", "'mine'", "boolq, cb,"]),
        ({"task.demos": 1001}, ["task.demos=1001: ", "1000 train rows", "task.num_train"]),
        ({"task.demos": 1000}, ["task.demos=1000: "]),
        ({"task.num_train": 0}, ["task.num_train=0: ", "optim=none"]),
        ({"task.num_dev": 0}, ["task.num_dev=0: ", "optim=none"]),
        (
            {"task.demo_sets": DemoSets.each, "task.demos": 4},
            ["task.demo_sets=each: ", "optim=none", "not lezo"],
        ),
        ({"task.demo_sets": DemoSets.each, "optim": NONE}, ["task.demo_sets=each: ", "task.demos"]),
        ({"optim": OptimConfig("icl")}, ["optim=icl: ", "task.demo_sets=each"]),
        ({"eval.calibration": Calibration.sfc, "task.name": "drop"}, ["eval.calibration=sfc: ", "drop"]),
        ({"eval.calibration": Calibration.icl_sfc}, ["eval.calibration=icl_sfc: ", "task.demos"]),
        ({"optim": OptimConfig("lp"), "task.num_train": 0}, ["task.num_train=0: ", "optim=lp"]),
        ({"peft": PeftConfig("head")}, ["peft=head: ", "optim=mezo"]),
        ({"peft": PrefixConfig("prefix"), "model.compile": True}, ["model.compile=true: ", "prefix", "lora"]),
        ({"optim": SGD, "model.compile": True}, ["model.compile=true: ", "fo-sgd"]),
        ({"optim": SGD, "model.home": Home.disk}, ["model.home=disk: ", "fo-sgd", "model.home=device"]),
        ({"model.home": Home.host, "model.compile": True}, ["model.compile=true: ", "model.home=host"]),
        ({"model.home_dir": ".", "model.home": Home.host}, ["model.home_dir=.: ", "model.home=disk"]),
        (
            {"optim.objective": Objective.metric, "model.compile": True},
            ["model.compile=true: ", "objective=metric"],
        ),
        ({"peft": LoraConfig("lora"), "optim": NONE}, ["peft=lora: ", "optim=none"]),
        ({"peft": LoraConfig("lora"), "optim.lr": None}, ["optim.lr: ", "lezo with peft=lora"]),
        ({"peft": PeftConfig("lora")}, ["peft: ", "'lora'", "/schema/peft/"]),
        ({"model.name": "hf"}, ["model=hf: ", "model.path=OWNER/NAME"]),
        ({"model.path": "."}, ["model.path=.: ", "model=hf"]),
        ({"model.name": "hf", "model.path": "./no/where"}, ["model.path=./no/where: "]),
        ({"model.tokenizer": "/no/where"}, ["model.tokenizer=/no/where: "]),
        ({"model.name": "hf", "model.path": "small.gguf"}, ["model.path=small.gguf: "]),
        ({"model.name": "hf", "model.path": __file__}, [f"model.path={__file__}: ", ".gguf"]),
        ({"optim.lr": None}, ["optim.lr: ", "model=tiny"]),
        ({"optim": SGD, "model.dtype": DType.float16}, ["model.dtype=float16: ", "fo-sgd", "bfloat16"]),
        ({"optim": ADAMW, "optim.momentum": 0.9}, ["optim.momentum: ", "fo-sgd"]),
    ],
)
def test_settings_that_do_not_go_together_say_the_way_out(changes: dict[str, Any], named: list[str]) -> None:
    names("\n".join(problems(changes)), *named)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": NONE, "task.num_train": 0, "task.num_dev": 0, "model.dtype": DType.float16},
        {"optim": SGD, "model.dtype": DType.bfloat16},
        {"optim": SGD, "optim.momentum": 0.9},
        {"data.name": "local", "data.path": "~"},
        {"data.name": "local", "data.path": __file__, "data.test_share": 0.5},
        {"data.name": "local", "data.path": "no/where/*.csv", "data.columns": {"label": "Class"}},
        {"data.name": "hub", "data.revision": "main"},
        {"model.name": "hf", "model.path": "facebook/opt-125m"},
        {"model.name": "opt-125m", "model.path": "/", "model.tokenizer": "gpt2"},
    ],
)
def test_settings_that_go_together_pass(changes: dict[str, Any]) -> None:
    assert problems(changes) == []


def test_all_problems_are_listed_at_once() -> None:
    found = problems({"seed": -1, "optim.sparsity": 1.5, "data.name": "local", "train.steps": 0})
    assert [problem.split(":")[0] for problem in found] == [
        "seed=-1",
        "optim.sparsity=1.5",
        "train.steps=0",
        "data=local",
    ]


def test_inspecting_needs_no_learning_rate_and_no_train_rows() -> None:
    changes = {"optim.lr": None, "task.num_train": 0, "task.num_dev": 0}
    assert len(problems(changes)) == 3
    assert problems(changes, weights=False) == []


def test_defaults_are_the_ones_promised() -> None:
    run = compose([]).config
    groups = (run.task, run.optim, run.model, run.data)
    assert [group.name for group in groups] == ["rte", "lezo", "tiny", "sample"]
    assert not (run.log.wandb or run.log.tensorboard or run.log.artifact or run.log.texts)
    assert isinstance(run.optim, LezoConfig)
    assert (run.optim.sparsity, run.optim.eps, run.optim.weight_decay) == (0.75, 1e-3, 0.0)
    task = run.task
    assert (task.num_train, task.num_dev, task.num_test, task.data_seed) == (None, None, 1000, 0)
    assert (run.seed, run.train.batch_size, run.train.steps, run.train.eval_every) == (0, 16, 1500, 300)
    assert (run.model.dtype, run.log.mode) == (DType.auto, WandbMode.auto)


@pytest.mark.parametrize(("optim", "lr"), [("mezo", 1e-6), ("fo-sgd", 1e-3), ("fo-adamw", 1e-5)])
def test_published_sizes_have_the_papers_schedule_data_and_learning_rate(optim: str, lr: float) -> None:
    run = compose(["model=opt-13b", f"optim={optim}"]).config
    assert (run.train.steps, run.train.eval_every, run.data.name) == (20000, 4000, "hub")
    assert getattr(run.optim, "lr", None) == lr
    if isinstance(run.optim, FirstOrderConfig) and optim == "fo-adamw":
        assert (run.optim.schedule.value, run.optim.clip_norm, run.optim.dropout) == ("linear", 1.0, None)


def test_any_model_must_be_given_data_and_a_learning_rate() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["model=hf", "model.path=gpt2"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["data", "optim.lr"]


def test_data_on_the_command_line_beats_the_models() -> None:
    assert compose(["data=sample", "model=opt-125m"]).config.data.name == "sample"


def test_a_problem_is_one_line_of_bounded_length() -> None:
    error = ConfigError(["a\nb\x1b[2J\ud800", "x" * 5000])
    assert error.problems == [r"a\nb\x1b[2J\ud800", f"{'x' * 600} ... {'x' * 600}"]
    assert str(error).count("\n") == 1


def test_a_composition_is_lezo_only_with_all_of_its_parts() -> None:
    assert Composition().is_lezo
    assert Composition(Part("uniform", {"sparsity": 0.5}), estimator=Part("metric")).is_lezo
    for part in ("blocks", "direction", "estimator", "step_size", "rule"):
        assert not Composition(**{part: Part("another")}).is_lezo, part
