"""A saved model in lm-evaluation-harness: the same likelihoods, the same accuracy (pip install 'lezo[lm-eval]')."""

import json
from pathlib import Path
from typing import Any

import pytest

from lezo.data.sampling import subset
from lezo.model.load import TINY
from lezo.tasks.sample import rows
from tests.lezo.whole_runs import Runner

# lezo's prompt in the harness's words, with the token that it puts before every text of an OPT.
TASK = """
task: lezo-sst2
dataset_path: json
dataset_kwargs: {data_files: {validation: own/sst2/val.jsonl}, cache_dir: cache}
output_type: multiple_choice
validation_split: validation
doc_to_text: "<s>{{sentence|trim}} It was"
doc_to_choice: ["terrible", "great"]
doc_to_target: label
metric_list: [{metric: acc}]
"""
TESTS = 8


def own_rows() -> list[str]:
    """Few rows in a folder of one's own, as both programs read them; the words that name it."""
    train, val = rows("sst2")
    Path("own/sst2").mkdir(parents=True)
    for name, some in (("train", train[:60]), ("val", val[:TESTS])):
        Path(f"own/sst2/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return ["task=sst2", "data=local", "data.path=own", "task.num_dev=8"]


def harness(**model: Any) -> tuple[float, list[list[float]]]:
    """Its accuracy, and the log-likelihood of each row's two answers, in the file's order."""
    lm_eval = pytest.importorskip(
        "lm_eval", reason="lm-evaluation-harness is missing: pip install 'lezo[lm-eval]'"
    )
    from lm_eval.tasks import TaskManager

    Path("lezo-sst2.yaml").write_text(TASK)
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"dtype": "float32", "add_bos_token": False, **model},
        tasks=["lezo-sst2"],
        task_manager=TaskManager(include_path=".", include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(found["samples"]["lezo-sst2"], key=lambda sample: sample["doc_id"])
    sums = [[log_prob for log_prob, _ in sample["filtered_resps"]] for sample in samples]
    return found["results"]["lezo-sst2"]["acc,none"], sums


def merged(folder: Path) -> str:
    """A LoRA adapter added to its base model, as a plain model in a folder of its own."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained("merged")
    AutoTokenizer.from_pretrained(folder).save_pretrained("merged")
    return "merged"


@pytest.mark.filterwarnings("ignore")  # of many libraries
@pytest.mark.parametrize("how", ["model", "adapter", "merged"])
def test_the_harness_scores_a_saved_model_as_lezo_did(how: str, lezo_run: Runner) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is missing: pip install 'lezo[lm-eval]'")
    words = ["optim=mezo", "optim.lr=0.02", "train.steps=2", *own_rows(), "save_model=true"]
    ran = lezo_run(*words, *([] if how == "model" else ["peft=lora"]))
    assert ran.code == 0, ran.err
    folder = ran.folder / "model"
    names = {
        "model": lambda: {"pretrained": str(folder)},
        "adapter": lambda: {"pretrained": str(TINY), "peft": str(folder)},
        "merged": lambda: {"pretrained": merged(folder)},
    }
    accuracy, sums = harness(**names[how]())
    assert accuracy == ran.result["test"]
    for row, index in zip(ran.rows("predictions.jsonl"), subset(TESTS, TESTS, 0), strict=True):
        assert row["scores"] == pytest.approx(sums[index], abs=1e-4)  # of one token: mean and sum are one
