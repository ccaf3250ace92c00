"""Every family of causal language models: scores and probe losses are transformers' own, packed or not."""

import pytest

from lezo.cli.replay import main as replay
from lezo.config.compose import compose
from lezo.data.pack import candidate_batch
from lezo.model.adapter import Adapter, Attached
from lezo.model.hashes import weights_hash
from lezo.model.layout import layout
from lezo.model.load import TINY, load_tokenizer
from lezo.runs.plan import make_plan
from lezo.zo.blocks import UniformBlocks
from lezo.zo.packing_check import network_for, probe_for
from lezo.zo.step import Stopwatch
from lezo.zo.zeroth_order import SeededUpdate, ZerothOrder
from tests.lezo import zoo
from tests.lezo.small_models import CPU, examples
from tests.lezo.whole_runs import SMALL, typed

PACKED = {
    "opt",
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt_neox",
    "gptj",
    "phi",
    "phi3",
    "gemma",
    "olmo2",
    "mixtral",
    "deepseek_v3",
}


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_scores_and_probes_are_those_of_transformers(family):
    if not zoo.known(family):
        pytest.skip(f"the installed transformers has no {family}")
    compared = zoo.compare(family, examples(2, seed=43))
    assert max(compared.scores, compared.probes) < 2e-4
    assert compared.rows == "packed" or family not in PACKED


@pytest.mark.parametrize(
    "family, targets",
    [("llama", "q_proj"), ("bloom", "query_key_value"), ("mamba", "in_proj"), ("gemma3n_text", "v_proj")],
)
def test_lora_trains_and_its_journal_makes_the_same_weights_again(family, targets):
    def attached():
        model = zoo.small(family)
        network = network_for(model, layout(model), longest=16)
        Attached(model, Adapter("lora", rank=2, targets=(targets,)), seed=1)
        return model, network

    model, network = attached()
    found, choose = layout(model), UniformBlocks(len(layout(model).blocks), 0.5)
    assert all(".lora_" in name for block in found.blocks for name in block)
    stepped = ZerothOrder(
        model, found, choose, probe_for(network, found, Stopwatch(CPU)), lr=1e-2, eps=1e-2, seed=3
    )
    batch = candidate_batch(examples(4), pad=1, device=CPU, plain=network.plain)
    before = weights_hash(model)
    reports = [stepped.step(step, [batch]) for step in range(3)]
    assert weights_hash(model) != before and all(report.applied for report in reports)
    again, _ = attached()
    update = SeededUpdate(again, layout(again), choose, seed=3)
    assert list(update.replay([(step, r.coefficients) for step, r in enumerate(reports)])) == [0, 1, 2]
    assert weights_hash(again) == weights_hash(model)


def test_a_run_in_plain_rows_says_so_counts_its_copies_goes_on_and_replays(
    lezo_run, tmp_path, monkeypatch, capsys
):
    tokenizer = load_tokenizer(str(TINY))
    monkeypatch.setitem(zoo.SHAPE, "vocab_size", len(tokenizer))
    model = zoo.small("bloom")
    model.save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    own = ["model=hf", f"model.path={tmp_path / 'bloom'}", "data=sample", "optim=mezo", "optim.lr=1e-4"]
    straight = lezo_run(*own, "train.eval_every=2", folder="straight")
    assert straight.result["rows"].startswith("plain: it does not take packed rows")
    assert f"rows {straight.result['rows']}; so one sequence a row" in straight.out
    planned, sizes = make_plan(compose([*own, *SMALL]).config).memory, [p.nbytes for p in model.parameters()]
    copies = sum(sizes) + max(sizes)  # MeZO: of everything, and of one tensor for both signs
    assert straight.result["memory_bytes"]["expected"] == planned.total - planned.update + copies
    lezo_run(*own, "train.eval_every=2", "train.steps=2")
    again = lezo_run(*own, "train.eval_every=2", "resume=auto")
    assert (again.code, again.result["weights"]) == (0, straight.result["weights"])
    code, out, _ = typed("lezo-replay", replay, monkeypatch, capsys)(
        "out", "replay.verify=true", "replay.device=cpu"
    )
    assert code == 0 and "everything is right" in out


def test_the_table_names_what_differs():
    rows = dict(row.strip("| ").split(" | ")[:2] for row in _rows("opt", "bloom"))
    assert rows["opt"] == "packed" and rows["bloom"].startswith("plain: it does not take packed rows")


def _rows(*families):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "FAMILIES", {family: zoo.FAMILIES[family] for family in families})
        return [row for row in zoo.table()][2:]
