"""The models that have a name: as large as their authors say, with learning rates by the rule of docs/models.md."""

from pathlib import Path

import pytest
import torch

from lezo.config.compose import compose
from lezo.model.load import ModelError, Source, load_config, skeleton
from lezo.runs.prepare import model_source
from tests.lezo.refusals import refused
from tests.lezo.whole_runs import Runner

PARAMETERS = {  # as their hub pages count them
    "smollm2-135m": 134_515_008,
    "qwen3-0.6b": 596_049_920,
    "gemma-3-1b": 999_885_952,
    "llama-3.2-1b": 1_235_814_400,
    "llama-2-7b": 6_738_415_616,
    "mistral-7b": 7_248_023_552,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_named_model_has_its_published_size_and_the_rules_learning_rate(name: str) -> None:
    config = compose([f"model={name}", "model.random_weights=true"]).config
    model = skeleton(load_config(model_source(config)), torch.float16)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == PARAMETERS[name]
    assert config.model.lr.zo == float(f"{2700 / parameters:.0e}")


def test_the_page_has_them_all() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    for name, parameters in PARAMETERS.items():
        model = compose([f"model={name}"]).config.model
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        assert f"| {model.path}" in row and f"{parameters:,}" in row
        assert float(row.split(" | ")[3].split(",")[0]) == model.lr.zo


def test_a_named_shape_is_planned_without_the_hub(lezo_run: Runner, shared: Path) -> None:
    random = ["model.random_weights=true", f"model.tokenizer={shared / 'tokenizers' / 'opt'}"]
    data = ["data=local", f"data.path={shared / 'data'}"]
    ran = lezo_run("model=llama-3.2-1b", "optim=mezo", *random, *data, "dry_run=true")
    assert ran.code == 0, ran.err
    assert "llama-3.2-1b: 1.2B parameters, 16 decoder blocks" in ran.out


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"model_type": "lama"}, ["the shape of x", "lama"]),
        ({"model_type": "bert"}, ["x: model_type bert"]),
        ({"model_type": "llama", "hidden_size": 3.5}, ["hidden_size"]),
    ],
)
def test_a_shape_of_no_causal_model_is_named(shape: dict[str, object], named: list[str]) -> None:
    with refused(ModelError, *named):
        load_config(Source("x", shape=shape, random_weights=True))
