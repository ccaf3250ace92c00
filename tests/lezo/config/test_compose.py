"""From overrides to a configuration, or to an error that says the way out."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from lezo.config.compose import Composed, compose, quoted
from lezo.config.diagnosis import CONF, GROUPS
from lezo.config.schema import ConfigError, RunConfig
from lezo.config.task import TASK_SCHEMAS
from tests.lezo.refusals import refused

HELP = yaml.safe_load((CONF / "run.yaml").read_text())["hydra"]["help"]["template"]
HELP = HELP.replace("${lezo_installed:}", "")  # what other packages have registered
OPTIONS = {group: sorted(file.stem for file in (CONF / group).glob("*.yaml")) for group in GROUPS}
FIRST = "# @package _global_\n"
LEZO = "defaults: [/schema/optim/lezo@_here_, _self_]\n"


@cache
def composed(*overrides: str) -> Composed:
    """The same for every test that looks at it."""
    return compose(overrides)


def written(folder: Path, name: str, text: str) -> Path:
    """A configuration of the user's own, as model/mine."""
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("optim.sparcity=0.5", ["optim.sparsity=0.5?", "optim=lezo are optim.lr,"]),
        ("optim=mezo optim.sparsity=0.5", ["optim=mezo are optim.lr, optim.eps"]),
        ("batch_size=3", ["train.batch_size=3 or eval.batch_size=3?"]),
        ("tsk=rte", ["task=rte?", "seed"]),
        ("model.lr={a:1}", ["model.lr.a", "model.lr.zo"]),
        ("train.steps.x=3", ["train.steps is a value"]),
        ("a.b.c=3", ["seed"]),
        ("train={steps:ten}", ["train.steps: ", "a whole number"]),
        ("train.max_seconds=long", ["a number or null"]),
        ("dry_run=maybe", ["true or false"]),
        ("model.dtype=int8", ["auto, float16, bfloat16, float32"]),
        ("log.tags=abc", ["a list of texts"]),
        ("log.tags.0=abc", ["log.tags is a value"]),
        ("log.tags.x=3", ["log.tags is a value"]),
        ("seed=null", ["a whole number"]),
        ("model.shape={hidden_size:3}", ["a group of keys or null"]),
        (f"model.lr={'{a:' * 150}1{'}' * 150}", ["a group of keys"]),
        ("task=RTE", ["mean rte?", "boolq, cb,"]),
        ("data=null", ["hub, local, sample"]),
        ("task=", ["boolq, cb,"]),
        (f"task={'x' * 5000}", ["boolq, cb,"]),
        ("model=../optim/lezo", ["option of model"]),
        ("++optim.lr=1", ["'+'"]),
        ("+experiment=x", ["opt-13b-first-order"]),
        ("experiment=playground", ["+experiment=playground?"]),
        ("~task", ["deleted"]),
        ("seed=range(3)", ["-m"]),
        ("rte", ["task=rte?", "key=value"]),
        ("task:rte", ["task=rte?"]),
        ("optim.lr=[1", ["key=value"]),
        (f"log.tags={'[' * 2000}{']' * 2000}", ["key=value"]),
        ("optim={name:mezo}", ["optim=fo-adamw"]),
        ("optim.name=mezo", ["mean optim=mezo?"]),
        ("log.name=wandb", ["names the run", "log=files, log=tensorboard, log=wandb", "log.wandb=true"]),
        ("log.artifact=true", ["save_model=true"]),
        ("log.texts=true", ["log=wandb"]),
        ("hydra.run.dir=", ["folder"]),
        ("hydra.x=3", ["HydraConf"]),
        ("log.project='a\udcff'", ["UTF-8"]),
    ],
)
def test_a_bad_override_is_named_with_what_was_expected(overrides: str, named: list[str]) -> None:
    *good, bad = overrides.split()
    with refused(ConfigError, bad[:600].replace("\udcff", r"\udcff"), *named):
        compose([*good, bad])


@pytest.mark.parametrize("value", ["${log.project}", "${log}"])
def test_a_group_of_nothing_or_of_another_groups_settings_by_reference_is_refused(value: str) -> None:
    with refused(ConfigError, "train: "):
        compose([f"train={value}"])


def test_the_bad_override_is_found_among_good_ones() -> None:
    with refused(ConfigError, "train.steps=x: "):
        compose(["task=sst2", "seed=1", "train.steps=5", "train.steps=x", "optim=mezo"])


EACH = [("optim", option, ()) for option in OPTIONS["optim"]]
EACH += [
    ("model", option, ("model.path=gpt2", "data=sample")[: 2 * (option == "hf")])
    for option in OPTIONS["model"]
]
EACH += [("peft", option, ("optim=mezo",)) for option in OPTIONS["peft"]]
EACH += [("task", "wic", ()), ("data", "hub", ()), ("data", "local", ("data.path=.",))]


@pytest.mark.parametrize(("group", "option", "more"), EACH)
def test_every_option_composes_and_is_named_like_its_file(
    group: str, option: str, more: tuple[str, ...]
) -> None:
    rate = ("optim.lr=1e-3",) if option == "hf" else ()
    assert getattr(composed(f"{group}={option}", *more, *rate).config, group).name == option


def test_the_options_of_log_say_who_is_told() -> None:
    told = {option: composed(f"log={option}").config.log for option in OPTIONS["log"]}
    said = {option: (log.wandb, log.tensorboard, log.name) for option, log in told.items()}
    assert said == {
        "files": (False, False, None),
        "tensorboard": (False, True, None),
        "wandb": (True, False, None),
    }
    both = composed("log=wandb", "log.tensorboard=true", "log.name=mine").config.log
    assert (both.wandb, both.tensorboard, both.name) == (True, True, "mine")


@pytest.mark.parametrize(
    "notes", ["smaller eps, as Anna proposed", "it's [new] {x: 1}", "null and void", "3"]
)
def test_notes_are_one_text(notes: str) -> None:
    assert compose([f"log.notes={notes}"]).config.log.notes == notes
    assert compose([f"log.notes={quoted(notes)}", "log.name='a b'"]).config.log.notes == notes
    assert compose(["log.notes=null"]).config.log.notes is None


def test_every_task_is_named_like_its_file() -> None:
    assert {file.stem: yaml.safe_load(file.read_text()) for file in (CONF / "task").iterdir()} == {
        name: {"name": name}
        | ({"defaults": [f"/schema/task/{name}@_here_", "_self_"]} if name in TASK_SCHEMAS else {})
        for name in OPTIONS["task"]
    }


def test_the_help_names_every_option_of_every_group_and_no_other() -> None:
    described = HELP.split("Groups (group=option)")[1].split("Options (key=value)")[0]
    described = re.sub(r"\[.*?\]|\(.*?\)", "", described)
    rows = re.split(r"^  (task|optim|model|peft|data|log) ", described, flags=re.MULTILINE)[1:]
    assert {group: sorted(row.split()) for group, row in zip(rows[::2], rows[1::2], strict=True)} == OPTIONS


def test_every_key_the_help_names_exists_and_every_key_is_named() -> None:
    described = HELP.split("Options (key=value)")[1].split("Results appear")[0]
    named = set(re.findall(r"(?:^|\s)((?:[a-z]+\.)?[a-z_0-9]+)(?==|\s)", described))
    named = {key for key in named if "." in key or key in ("seed", "dry_run", "resume", "save_model")}
    others = ("inspect.", "bench.", "model.shape", "model.lr", *NO_OPTIONS)
    elsewhere = {
        "model.path",
        "log.wandb",
        *(f"{group}.name" for group in GROUPS if group != "log"),
    }  # among the groups and commands
    assert named == {key for key in _keys() if not key.startswith(others)} - elsewhere | SHORTHANDS


# What a task that is described by settings needs to be one.
DESCRIBED = {
    "prompt": ("task=prompt", "task.template={{ x }}", "task.label_column=y", "task.words={a: b, c: d}"),
    "python": ("task=python", "task.class=lezo.tasks.rte:RTE"),
    "chat": ("task=chat",),
}
SHORTHANDS = {
    "train.forwards",
    "train.evaluations",
    "optim.lr_scale",
    "task.class",
}  # which no configuration that is written has
# Defaults of optim.lr and eps.
NO_OPTIONS = ("model.lora_lr", "model.prefix_lr", "model.head_lr", "peft.lr", "peft.eps")


def _keys() -> set[str]:
    """Every key of the schema, of all the optimizers and adapters together."""
    chosen = [(f"optim={optim}",) for optim in OPTIONS["optim"]]
    chosen += [(f"peft={peft}", "optim=mezo") for peft in OPTIONS["peft"]]
    chosen += [DESCRIBED[task] for task in TASK_SCHEMAS]
    return {
        f"{group}.{key}" if isinstance(value, dict) else str(group)
        for tree in (yaml.safe_load(composed(*overrides).yaml) for overrides in chosen)
        for group, value in tree.items()
        for key in (value if isinstance(value, dict) else [None])
    }


def test_a_users_own_config_folder_adds_options_and_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a, [b] 'c' {d}"
    written(
        folder,
        "model/mine",
        f"{FIRST}model: {{name: mine, path: gpt2, lr: {{zo: 2e-5}}}}\ntrain: {{steps: 7}}\n",
    )
    config = compose(["model=mine"], config_dir=str(folder)).config
    assert (config.model.path, config.train.steps, getattr(config.optim, "lr", None)) == ("gpt2", 7, 2e-5)
    with refused(ConfigError, "model=mina: ", "mean mine?"):
        compose(["model=mina"], config_dir=str(folder))


def test_a_users_recipe_is_asked_for_with_experiment(tmp_path: Path) -> None:
    written(tmp_path, "experiment/short", f"{FIRST}train: {{steps: 7}}\nseed: 5\n")
    config = compose(["+experiment=short", "seed=6"], config_dir=str(tmp_path)).config
    assert (config.train.steps, config.seed) == (7, 6)


def test_a_missing_config_folder_is_named_first() -> None:
    with refused(ConfigError, "--config-dir no/where: "):
        compose(["+experiment=own"], config_dir="no/where")


def test_run_and_sweep_folders_are_honoured() -> None:
    found = composed("hydra.run.dir='with space/r'", "hydra.sweep.dir=/elsewhere")
    assert (found.run_dir, found.sweep_dir) == (Path("with space/r"), Path("/elsewhere"))


def test_the_default_folder_says_task_model_and_optimizer() -> None:
    found = composed("optim=mezo")
    assert found.run_dir.parent == Path("runs/rte/tiny-mezo")
    assert found.sweep_dir == Path("runs/sweeps")
    assert found.job_name.startswith("rte-tiny-mezo-seed0-")


def test_the_yaml_is_the_whole_configuration_and_nothing_of_hydras() -> None:
    tree = yaml.safe_load(composed("optim=mezo").yaml)
    assert set(tree) == set(RunConfig.__dataclass_fields__)
    assert tree["optim"]["lr"] == tree["model"]["lr"]["zo"]  # interpolations are resolved


SECRET = "a value that must not be shown"


@pytest.mark.parametrize("key", ["log.tags=[a,{}]", "seed={}", "task={}", "hydra.run.dir={}", "log=mine"])
def test_the_environment_is_not_read_into_a_run(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    written(tmp_path, "log/mine", "project: ${oc.env:TOKEN}\n")
    with refused(ConfigError, "${oc.env:TOKEN}: ", 'key="$TOKEN"') as error:
        compose([key.format("'${oc.env:TOKEN}'")], config_dir=str(tmp_path))
    assert SECRET not in str(error.value)
    assert OmegaConf.create({"x": "${oc.env:TOKEN}"}).x == SECRET  # elsewhere OmegaConf is as it was


def test_what_would_be_read_as_a_reference_later_is_refused() -> None:
    with refused(ConfigError, "project: ${oc.env:TOKEN}: "):
        compose([r"log.project=\${oc.env:TOKEN}"])


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("model", FIRST + "model: {path: x, name: ../../up}", "'../../up'"),
        ("model", FIRST + 'model: {path: x, name: "a\\nb"}', r"'a\nb'"),
        ("optim", LEZO + "lr: 1e-3\nname: fo-adamw", "'fo-adamw'"),
        ("peft", "defaults: [/schema/peft/lora@_here_, _self_]\nname: prefix\nlr: {zo: 1}", "'prefix'"),
        ("task", "name: mine", "'mine'"),
        ("data", "name: ../../up", "'../../up'"),
    ],
)
def test_a_name_that_a_users_config_cannot_have_is_refused(
    name: str, text: str, named: str, tmp_path: Path
) -> None:
    written(tmp_path, f"{name}/mine", text)
    given = [f"{name}=mine", *(["data=sample", "optim=none"] if name == "model" else [])]
    with refused(ConfigError, f"{name}: name ", named):
        compose(given, config_dir=str(tmp_path))


def test_a_locale_that_reads_no_utf8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with refused(ConfigError, r"log.project='\udcc3\udca4': ", "ascii", "LC_ALL=C.UTF-8"):
        compose(["log.project='\udcc3\udca4'"])


TEXTS = {text: text for text in ("out", "../runs/rte-1/a.b", "/tmp/x")}
TEXTS |= {
    t: f"'{t}'" for t in ("True", "null", "1e3", "-1", ".5", "a b", "", "jos\u00e9/runs", r"a\b", "x=y")
}
TEXTS |= {"it's": r"'it\'s'", "a\\": r"'a\\'"}


def test_a_text_is_quoted_where_it_must_be() -> None:
    assert {text: quoted(text) for text in TEXTS} == TEXTS
    assert compose([f"log.tags=[{','.join(map(quoted, TEXTS))}]"]).config.log.tags == [*TEXTS]


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("experiment", "optim: {lrr: 3}", [FIRST.strip()]),
        ("experiment", FIRST + "optim: {lrr: 3}", ["optim.lrr: ", "mean optim.lr?"]),
        ("experiment", FIRST + "stps: 3", ["stps: ", "mean train.steps?"]),
        ("experiment", FIRST + "train: {steps: many}", ["train.steps: ", "a whole number", "'many'"]),
        ("experiment", FIRST + "train: 3", ["TrainConfig"]),
        ("experiment", FIRST + "defaults: [override /modl: tiny]", ["'modl'"]),
        ("optim", "defaults: [/schema/optim/lzo@_here_, _self_]\nname: lezo", ["schema/optim=lzo: "]),
        ("optim", "name: lezo\nlr: 3", ["optim.lr: ", "[/schema/optim/NAME@_here_, _self_]"]),
        ("model", "model: {name: hf}", [FIRST.strip()]),
        ("task", "name: [1\n  b: }\n", ["line 2"]),
        ("task", "name: !!python/name:os.system\n", ["line 1"]),
    ],
)
def test_what_is_wrong_in_a_file_of_ones_own_is_named_with_the_file(
    name: str, text: str, named: list[str], tmp_path: Path
) -> None:
    file = written(tmp_path, f"{name}/own", f"{text}\n")
    with refused(ConfigError, str(file), *named):
        compose([f"{'+' if name == 'experiment' else ''}{name}=own"], config_dir=str(tmp_path))


def test_a_recipe_that_asks_for_what_is_not_there_is_named(tmp_path: Path) -> None:
    written(tmp_path, "experiment/own", f"{FIRST}defaults: [override /model: tinny]\n")
    with refused(ConfigError, "+experiment=own: model=tinny: ", "mean tiny?"):
        compose(["+experiment=own"], config_dir=str(tmp_path))


def test_a_runs_own_model_is_no_base_of_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    given = ["model=hf", f"model.path={tmp_path}/model", "data=sample", "optim=none"]
    with refused(ConfigError, f"model.path={tmp_path}/model: ", "hydra.run.dir"):
        compose([*given, f"hydra.run.dir={tmp_path}"])


def test_a_slip_is_found_beside_labels_that_are_numbers() -> None:
    words = ("task=prompt", "task.template={{ x }}", "task.label_column=y", "task.words={0: bad, 1: good}")
    with refused(ConfigError, "train.stps=5: unknown key; did you mean train.steps=5?"):
        compose([*words, "train.stps=5"])
