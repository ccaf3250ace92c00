"""Random overrides: the configuration they ask for, or a ConfigError of one line a problem; never anything else."""

from collections.abc import Iterator

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lezo.config.compose import Composed, compose, parse, quoted
from lezo.config.diagnosis import CONF, GROUPS
from lezo.config.schema import ConfigError

SECRET = "a-value-that-must-not-be-shown"
FUZZ = settings(
    max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

KEYS = st.sampled_from(
    [
        *("seed", "dry_run", "train.steps", "train.max_seconds", "task.num_dev", "task", "optim", "model", "data"),
        *("optim.lr", "optim.eps", "log.project", "log.tags", "log.group", "model.dtype", "model.path", "model.lr"),
        *("model.shape", "data.path", "hydra.run.dir", "hydra.sweep.dir", "train", "resume", "model.lr.zo"),
    ]
)  # fmt: skip
STRANGE_KEYS = st.sampled_from(
    [
        *("hydra", "hydra.searchpath", "hydra.job.name", "hydra/launcher", "optim@model", "log.tags.0", "task.name"),
        *("+seed", "++seed", "~seed", "+new", "~task", "+experiment", "", "a.b.c", "task/x", "seed@x", "hydra.run"),
    ]
) | st.text(st.sampled_from("abz._-/@+~=:$ 0"), max_size=12)  # fmt: skip
TEXTS = st.text(
    st.sampled_from("ab1.,:;=[]{}()'\"\\$ \t\n/~#%@!?*&|<>é猫😀") | st.characters(categories=["Cc", "Lu"]),
    max_size=10,
)
SIMPLE = st.sampled_from(
    [
        *("null", "true", "???", "1e999", "-1", "0", "1", "7", "nan", "inf", "9" * 400, "0.5", "1e-3", "off", "auto"),
        *("[1,2]", "[a,b]", "[[a]]", "[null]", "{a:1}", "{zo:1}", "{steps:3}", "{name:x}", "[]", "{}", "{1:{2:[]}}"),
        *("rte", "lezo", "none", "hf", "opt-125m", "sample", "hub", "float32", "../task/rte", "/etc/passwd", "."),
        *("${seed}", "${nope}", "${..seed}", "${now:%Y}", "${log}", "${log.group}", "${log.project}", "${train.steps}"),
        *("${oc.env:TOKEN}", "${oc.env:TOKEN,x}", "a${oc.env:TOKEN}", "[${oc.env:TOKEN}]", "{zo:${oc.env:TOKEN}}"),
        *("${oc.dict.values:log}", "${oc.decode:x}", "${hydra:run.dir}", "${optim}", "${model.lr}", r"\${seed}"),
        *("1,2", "choice(1,2)", "range(3)", "glob(*)", "extend_list(a)", "x" * 2000, "''", "\ud800", "'\ud800'"),
    ]
)  # fmt: skip
WILD = st.lists(SIMPLE | TEXTS | st.sampled_from(["[" * 600, "{a:" * 300, "${" * 200, "'"]), max_size=3).map(
    "".join
)
FITTING = st.sampled_from(
    [
        *("seed=7", "train.steps=3", "optim.lr=1e-3", "task=cb", "optim=mezo", "optim=none", "dry_run=true"),
        *(
            "log.tags=[a,b]",
            "train.steps=${train.eval_every}",
            "log.project=p${seed}",
            "log=wandb",
            "resume=auto",
        ),
        *(
            "train.max_seconds=null",
            "task.num_test=null",
            "model.lr={zo:1}",
            "train={steps:3}",
            "model.dtype=float32",
        ),
    ]
) | st.builds(
    "{}={}".format, st.sampled_from(["log.project", "log.group", "hydra.run.dir"]), TEXTS.map(quoted)
)
LIKELY = st.builds("{}={}".format, KEYS, SIMPLE | TEXTS.map(quoted))
OVERRIDES = FITTING | LIKELY | st.builds("{}={}".format, KEYS | STRANGE_KEYS, SIMPLE | WILD) | WILD


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)


def composed(overrides: list[str]) -> Composed | None:
    """What the overrides make; None where they are refused in due form."""
    try:
        found = compose(overrides)
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.isprintable() and 5 < len(problem) < 1300 and SECRET not in problem
        return None
    assert SECRET not in found.yaml + str(found.run_dir) + str(found.sweep_dir)
    assert "${" not in found.yaml and found.yaml.encode()
    return found


def leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The values of a YAML tree by their dotted keys."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


DEFAULTS = dict(leaves(yaml.safe_load(compose([]).yaml)))


@FUZZ
@given(st.lists(OVERRIDES, min_size=1, max_size=2))
def test_any_override_is_taken_or_refused(overrides: list[str]) -> None:
    found = composed(overrides)
    if found is None:
        return
    changed = {key for key, value in leaves(yaml.safe_load(found.yaml)) if DEFAULTS.get(key, ...) != value}
    asked = {override.key_or_group for override in parse(overrides)}
    asked |= (
        {"optim.lr", "peft.lr"} if any(key.startswith("model.lr") for key in asked) else set()
    )  # which follow
    if not asked & set(GROUPS):  # a group's choice changes other keys too
        assert all(any(key == one or key.startswith(f"{one}.") for one in asked) for key in changed)
    assert ".." not in found.run_dir.parts or "hydra.run.dir" in asked


@settings(FUZZ, max_examples=6)
@given(
    st.text(
        st.sampled_from("\\'${}a:.b\"[,é/ \n%#=~1") | st.characters(exclude_categories=["Cs"]), max_size=12
    )
)
def test_a_quoted_text_is_that_text(text: str) -> None:
    found = composed([f"log.project={quoted(text)}", f"hydra.run.dir={quoted('x/' + text + 'é')}"])
    if "${" in text or text == "???" or found is None and not text.isprintable():
        assert found is None
        return
    assert found is not None
    assert (found.config.log.project, str(found.run_dir)) == (text, str(type(found.run_dir)(f"x/{text}é")))
    assert yaml.safe_load(found.yaml)["log"]["project"] == text


def test_the_fuzz_asks_for_real_choices() -> None:
    assert {"rte", "lezo", "opt-125m"} <= {file.stem for group in GROUPS for file in (CONF / group).iterdir()}
