"""From overrides to a configuration, or to an error that says the way out."""

import itertools
import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from lezo.config.compose import Composed, compose, quoted
from lezo.config.diagnosis import CONF, GROUPS
from lezo.config.schema import ConfigError, RunConfig

HELP = yaml.safe_load((CONF / "run.yaml").read_text())["hydra"]["help"]["template"]
HELP = HELP.replace("${lezo_installed:}", "")  # what other packages have registered
OPTIONS = {group: sorted(file.stem for file in (CONF / group).glob("*.yaml")) for group in GROUPS}


def problem(*overrides: str, config_dir: str | None = None) -> str:
    """The one problem found with the overrides."""
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dir=config_dir)
    (found,) = caught.value.problems
    return found


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("optim.sparcity=0.5", "unknown key; did you mean optim.sparsity=0.5? the keys of optim=lezo are optim.lr,"),
        ("optim=mezo optim.sparsity=0.5", "unknown key; the keys of optim=mezo are optim.lr, optim.eps"),
        ("train.step=3", "did you mean train.steps=3? the keys are train.steps, train.batch_size"),
        ("sede=3", "did you mean seed=3? the keys are seed, dry_run"),
        ("train.steps.x=3", "unknown key; train.steps is a value and has no keys"),
        ("train.steps=ten", "expected a whole number"),
        ("train.eval_every=2.5", "expected a whole number"),
        ("train.max_seconds=long", "expected a number or null"),
        ("optim.eps=small", "expected a number"),
        ("dry_run=maybe", "expected true or false"),
        ("model.dtype=int8", "expected one of auto, float16, bfloat16, float32"),
        ("optim=fo-sgd optim.schedule=cosine", "expected one of constant, linear"),
        ("log.tags=abc", "expected a list of texts"),
        ("seed=null", "expected a whole number"),
        ("model.shape=3", "expected a group of keys or null"),
        ("task=rtee", "unknown; did you mean rte? expected one of boolq, cb, copa,"),
        ("optim=LeZO", "did you mean lezo? expected one of fo-adamw, fo-sgd, icl, lezo, lp, mezo, none"),
        ("model=opt-12b", "unknown; did you mean opt-"),
        ("task=", "unknown; expected one of boolq"),
        ("data=null", "unknown; expected one of hub, local, sample"),
        ("+foo=1", "leave out the '+'"),
        ("++optim.lr=1", "leave out the '+'"),
        ("+experiment=x", "unknown; expected one of opt-13b-first-order"),
        ("~task", "no key can be deleted"),
        ("task=rte,cb", "several values; add -m to run one job for each"),
        ("seed=range(3)", "several values; add -m to run one job for each"),
        ("foo", "expected key=value or group=option"),
        ("optim.lr=[1", "expected key=value or group=option"),
        ("task.name=sst2", "a name is chosen with its settings; did you mean task=sst2? expected one of task=boolq"),
        ("optim.name=mezo", "did you mean optim=mezo? expected one of"),
        ("optim={name:mezo}", "a name is chosen with its settings; expected one of optim=fo-adamw"),
        ("log.name=x", "expected one of log=files, log=wandb; log.group=NAME and log.tags=[NAME] label a run"),
        ("tsk=rte", "did you mean task=rte? the keys are seed"),
        ("optimizer=mezo", "did you mean optim=mezo? the keys are seed"),
        ("steps=10", "did you mean train.steps=10? the keys are seed"),
        ("batch_size=3", "did you mean train.batch_size=3 or eval.batch_size=3? the keys are seed"),
        ("experiment=playground", "did you mean +experiment=playground? the keys are seed"),
        ("task=RTE", "unknown; did you mean rte? expected one of boolq"),
        ("rte", "did you mean task=rte? expected key=value"),
        ("task:rte", "did you mean task=rte? expected key=value"),
        ("model=../optim/lezo", "expected an option of model, not a path to elsewhere"),
        (f"task={'x' * 5000}", "unknown; expected one of boolq"),
        ("hydra.run.dir=", "expected a folder of its own for the run's files"),
        ("model.shape={hidden_size:3}", "expected a group of keys or null"),
        (f"log.tags={'[' * 2000}{']' * 2000}", "expected key=value or group=option"),
        (f"model.lr={'{a:' * 150}1{'}' * 150}", "expected a group of keys"),
    ],
)  # fmt: skip
def test_a_bad_override_is_named_with_what_was_expected(overrides: str, expected: str) -> None:
    found = problem(*overrides.split())
    assert found.startswith(f"{overrides.split()[-1][:600]}")
    assert expected in found and "\n" not in found and len(found) < 1300


@pytest.mark.parametrize("group", ["train", "eval", "bench"])
def test_a_group_of_nothing_by_reference_is_refused(group: str) -> None:
    with pytest.raises(ConfigError, match=f"^{group}=None: expected its settings"):
        compose([f"{group}=${{log.project}}"])


def test_the_bad_override_is_found_among_good_ones() -> None:
    assert problem("task=sst2", "seed=1", "train.steps=x", "optim=mezo").startswith("train.steps=x: ")


@pytest.mark.parametrize(
    ("optim", "model"),
    [*itertools.product(OPTIONS["optim"], ["tiny", "opt-125m", "hf"])]
    + [("lezo", model) for model in OPTIONS["model"] if model not in ("tiny", "opt-125m", "hf")],
)
def test_optimizers_and_models_combine(optim: str, model: str) -> None:
    given = ["model.path=gpt2", "data=sample"] if model == "hf" else []
    rate = ["optim.lr=1e-3"] if model == "hf" and optim not in ("none", "icl", "lp") else []
    config = compose([f"optim={optim}", f"model={model}", *given, *rate]).config
    assert (config.optim.name, config.model.name) == (optim, model)


@pytest.mark.parametrize("group", ["task", "data", "log"])
def test_every_option_composes_and_is_named_like_its_file(group: str, tmp_path: Path) -> None:
    for option in OPTIONS[group]:
        folder = [f"data.path={tmp_path}"] if option == "local" else []
        assert getattr(compose([f"{group}={option}", *folder]).config, group).name == option


def test_the_help_names_every_option_of_every_group_and_no_other() -> None:
    described = HELP.split("Groups (group=option)")[1].split("Options (key=value)")[0]
    described = re.sub(r"\[.*?\]|\(.*?\)", "", described)
    rows = re.split(r"^  (task|optim|model|peft|data|log) ", described, flags=re.MULTILINE)[1:]
    assert {group: sorted(row.split()) for group, row in zip(rows[::2], rows[1::2], strict=True)} == OPTIONS


def test_every_key_the_help_names_exists_and_every_key_is_named() -> None:
    described = HELP.split("Options (key=value)")[1].split("Results appear")[0]
    named = set(re.findall(r"(?:^|\s)((?:[a-z]+\.)?[a-z_]+)(?==|\s)", described))
    named = {key for key in named if "." in key or key in ("seed", "dry_run", "resume", "save_model")}
    assert named == {
        key
        for key in _keys()
        if not key.startswith(("inspect.", "bench.", "model.shape", "model.lr", *NO_OPTIONS))
    } - {
        "model.path",  # stands with its group and in the commands to copy
        *(f"{group}.name" for group in GROUPS),
    }


NO_OPTIONS = (
    "model.lora_lr",
    "model.prefix_lr",
    "model.head_lr",
    "peft.lr",
    "peft.eps",
)  # defaults of optim.lr and eps


def _keys() -> set[str]:
    """Every key of the schema, of all the optimizers and adapters together."""
    adapters = [["optim=mezo", f"peft={peft}", "optim.lr=1"] for peft in OPTIONS["peft"]]
    chosen = [[f"optim={optim}"] for optim in OPTIONS["optim"]] + adapters
    composed = [OmegaConf.create(compose(overrides).yaml) for overrides in chosen]
    return {
        f"{group}.{key}" if isinstance(value, dict) else str(group)
        for tree in map(OmegaConf.to_container, composed)
        for group, value in tree.items()
        for key in (value if isinstance(value, dict) else [None])
    }


def test_a_users_own_config_folder_adds_options(tmp_path: Path) -> None:
    folder = tmp_path / "my configs"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text(
        "# @package _global_\nmodel: {name: mine, path: gpt2, lr: {zo: 2e-5}}\ntrain: {steps: 7}\n"
    )
    composed = compose(["model=mine"], config_dir=str(folder))
    assert (composed.config.model.path, composed.config.train.steps) == ("gpt2", 7)
    assert getattr(composed.config.optim, "lr", None) == 2e-5
    assert "did you mean mine?" in problem("model=mina", config_dir=str(folder))


def test_a_users_recipe_is_asked_for_with_experiment(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "short.yaml").write_text("# @package _global_\ntrain: {steps: 7}\nseed: 5\n")
    config = compose(["+experiment=short", "seed=6"], config_dir=str(tmp_path)).config
    assert (config.train.steps, config.seed) == (7, 6)


def test_a_users_task_must_be_one_of_the_eleven(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("name: mine\n")
    assert "name 'mine' is unknown; expected one of boolq" in problem("task=mine", config_dir=str(tmp_path))


def test_a_missing_config_folder_is_named(tmp_path: Path) -> None:
    assert problem(config_dir=str(tmp_path / "none")) == f"--config-dir {tmp_path / 'none'}: no such folder"


def test_run_and_sweep_folders_are_honoured() -> None:
    composed = compose(["hydra.run.dir='with space/r'", "hydra.sweep.dir=/elsewhere"])
    assert (composed.run_dir, composed.sweep_dir) == (Path("with space/r"), Path("/elsewhere"))


def test_the_default_folder_says_task_model_and_optimizer() -> None:
    composed = compose(["task=cb", "optim=mezo"])
    assert composed.run_dir.parent == Path("runs/cb/tiny-mezo")
    assert composed.sweep_dir == Path("runs/sweeps")
    assert composed.job_name.startswith("cb-tiny-mezo-seed0-")


def test_the_yaml_is_the_whole_configuration_and_nothing_of_hydras() -> None:
    composed: Composed = compose(["optim=mezo"])
    tree = yaml.safe_load(composed.yaml)
    assert set(tree) == set(RunConfig.__dataclass_fields__)
    assert tree["optim"]["lr"] == tree["model"]["lr"]["zo"]  # interpolations are resolved


SECRET = "a value that must not be shown"


@pytest.mark.parametrize(
    "override",
    [
        "log.project=${oc.env:TOKEN}",
        "log.tags=[a,'${oc.env:TOKEN,default}']",
        "model.path=${oc.env:TOKEN}",
        "seed=${oc.env:TOKEN}",
        "task=${oc.env:TOKEN}",
        "hydra.run.dir=${oc.env:TOKEN}/x",
    ],
)
def test_the_environment_is_not_read_into_a_run(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    found = problem(override)
    assert found.startswith("${oc.env:TOKEN}: the run's files would hold an environment variable's value")
    assert 'let the shell write what is none: key="$TOKEN"' in found and SECRET not in found
    assert OmegaConf.create({"x": "${oc.env:TOKEN}"}).x == SECRET  # elsewhere OmegaConf is as it was


def test_what_would_be_read_as_a_reference_later_is_refused() -> None:
    found = problem(r"log.project=\${oc.env:TOKEN}")
    assert found.startswith("project: ${oc.env:TOKEN}: expected a value without '${'")


def test_a_users_config_reads_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    written(tmp_path, "log", "name: files\nproject: ${oc.env:TOKEN}\n")
    assert problem("log=mine", config_dir=str(tmp_path)).startswith("${oc.env:TOKEN}: the run's files")


def written(folder: Path, group: str, text: str) -> None:
    """Write a configuration ``mine`` of the user's own."""
    (folder / group).mkdir(exist_ok=True)
    (folder / group / "mine.yaml").write_text(text)


LEZO = "defaults: [/schema/optim/lezo@_here_, _self_]\nlr: 1e-3\n"


@pytest.mark.parametrize(
    ("group", "text", "expected"),
    [
        ("model", "# @package _global_\nmodel: {path: x, name: ../../up}\n", "name '../../up' would be part of the"),
        ("model", "# @package _global_\nmodel: {path: x, name: a/b}\n", "name 'a/b' would be part of the run"),
        ("model", "# @package _global_\nmodel: {path: x, name: ..}\n", "name '..' would be part of the run folder's"),
        ("model", '# @package _global_\nmodel: {path: x, name: "a\\nb"}\n', r"name 'a\nb' would be part of the"),
        ("optim", LEZO + "name: ../../up\n", "name '../../up' is not that of its settings; expected one of none, icl"),
        ("optim", LEZO + "name: fo-adamw\n", "name 'fo-adamw' is not that of its settings; expected one of none,"),
        ("task", "name: ../../up\n", "name '../../up' is unknown; expected one of boolq, cb"),
        ("data", "name: ../../up\n", "name '../../up' is unknown; expected one of hub, local, sample"),
        ("log", "name: console\n", "name 'console' is unknown; expected one of files, wandb"),
        ("task", "name: rte\nfoo: 3\n", "task/mine.yaml: task.foo: unknown key; expected one of task.num_train,"),
        ("task", "name: [1\n  b: }\n", "task/mine.yaml, line 2: not valid YAML (expected ',' or ']', but got ':')"),
        ("task", "name: !!python/name:os.system\n", "task/mine.yaml, line 1: not valid YAML (could not determine"),
    ],
)  # fmt: skip
def test_a_users_config_makes_no_folder_elsewhere_and_its_mistakes_are_named(
    group: str, text: str, expected: str, tmp_path: Path
) -> None:
    written(tmp_path, group, text)
    given = [f"{group}=mine", *(["data=sample", "optim=none"] if group == "model" else [])]
    assert expected in problem(*given, config_dir=str(tmp_path))


def test_a_config_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a, [b] 'c' {d}"
    folder.mkdir()
    written(folder, "task", "name: cb\n")
    assert compose(["task=mine"], config_dir=str(folder)).config.task.name == "cb"


def test_bytes_that_are_no_text_are_refused() -> None:
    assert problem("log.project='a\udcff'") == r"log.project='a\udcff': expected UTF-8 text"


def test_a_locale_that_reads_no_utf8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    way_out = "expected UTF-8 text, and Python reads ascii; say LC_ALL=C.UTF-8 before the command"
    assert problem("log.project='\udcc3\udca4'") == rf"log.project='\udcc3\udca4': {way_out}"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("out", "out"),
        ("../runs/rte-1/a.b", "../runs/rte-1/a.b"),
        ("/tmp/x", "/tmp/x"),
        *(
            (text, f"'{text}'")
            for text in ("True", "null", "1e3", "-1", ".5", "a b", "", "jos\u00e9/runs", r"a\b", "x=y")
        ),
        ("it's", r"'it\'s'"),
        ("a\\", r"'a\\'"),
    ],
)
def test_a_text_is_quoted_where_it_must_be(text: str, written: str) -> None:
    assert quoted(text) == written
    assert compose([f"log.project={quoted(text)}"]).config.log.project == text


FIRST = "# @package _global_\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("experiment/own", "optim: {lrr: 3}", f"expected '{FIRST.strip()}' as the first line, without which its keys are"),
        ("experiment/own", FIRST + "optim: {lrr: 3}", "optim.lrr: unknown key; did you mean optim.lr? expected one of optim.lr,"),
        ("experiment/own", FIRST + "stps: 3", "stps: unknown key; did you mean train.steps? expected one of seed,"),
        ("experiment/own", FIRST + "train: {steps: many}", "train.steps: expected a whole number (Value 'many' of type"),
        ("experiment/own", FIRST + "train: 3", "Merge error: int is not a subclass of TrainConfig. value: 3"),
        ("experiment/own", FIRST + "experiment: {a: 3}", "experiment: unknown key; expected one of seed,"),
        ("experiment/own", FIRST + "defaults: [override /modl: tiny]", "Could not override 'modl'. No match in the"),
        ("optim/own", "defaults: [/schema/optim/lezo@_here_, _self_]\nname: lezo\nlrr: 3", "optim.lrr: unknown key; did you"),
        ("optim/own", "name: lezo\nlr: 3", "optim.lr: unknown key; expected defaults: [/schema/optim/NAME@_here_, _self_]"),
        ("task/own", "name: rte\nnum_dv: 3", "task.num_dv: unknown key; did you mean task.num_dev? expected one of"),
        ("model/own", "model: {name: hf}", f"expected '{FIRST.strip()}' as the first line, without which its keys are those"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_of_ones_own_is_named_with_the_file(
    name: str, text: str, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / f"{name}.yaml"
    file.parent.mkdir()
    file.write_text(f"{text}\n")
    group = name.split("/")[0]
    found = problem(f"{'+' if group == 'experiment' else ''}{group}=own", config_dir=str(tmp_path))
    assert found.startswith(f"{file}: ") and expected in found


def test_a_recipe_that_asks_for_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(f"{FIRST}defaults: [override /model: tinny]\n")
    found = problem("+experiment=own", config_dir=str(tmp_path))
    assert found.startswith("+experiment=own: model=tinny: unknown; did you mean tiny? expected one of hf,")


def test_a_folder_of_ones_own_that_is_not_there_is_named_first(tmp_path: Path) -> None:
    assert problem("+experiment=own", config_dir="no/where") == "--config-dir no/where: no such folder"


def test_a_runs_own_model_is_no_base_of_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    given = ["model=hf", f"model.path={tmp_path}/model", "data=sample", "optim=none"]
    assert "is where this run's own model would be" in problem(*given, f"hydra.run.dir={tmp_path}")
