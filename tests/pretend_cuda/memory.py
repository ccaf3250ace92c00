"""How much memory loading, going back and running take; run as a program, which prints tables.

    python -m tests.pretend_cuda.memory loading        host memory above the model's own, on pretended CUDA
    python -m tests.pretend_cuda.memory going_back     of a model of 135 million weights on this CPU
    python -m tests.pretend_cuda.memory planned        what a plan expects on the device, beside what is counted

Each figure is measured in a process of its own. "at once" is how transformers loads, as before.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest import mock

MB = 10**6


def status(key: str) -> int:
    """Bytes that Linux says of this process: VmRSS (resident), VmHWM (its peak), VmData (writable and private)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def rise(work: Callable[[], object]) -> int:
    """By how many bytes resident memory rises at most while ``work`` is done, pages of files included."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def write_model(folder: Path, config: Any, dtype: Any, shards: int) -> int:
    """A folder of a model of the configuration; returns its bytes of weights. Every tensor has other values."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        bones = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(folder)
    named = dict(bones.named_parameters())
    names, weight_map, total = list(named), {}, 0
    count = -(-len(names) // shards)
    for number in range(shards):
        some = names[number * count : (number + 1) * count]
        tensors = {
            name: torch.full(named[name].shape, 1e-3 * len(name), dtype=dtype).div_(i + 1)
            for i, name in enumerate(some)
        }
        file = f"model-{number}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(some, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def at_once(yes: bool) -> Any:
    """While it lasts, weights are loaded at once, where ``yes``."""
    return mock.patch("lezo.model.load.outline", lambda *_: None) if yes else mock.patch.dict({}, {})


def load_on_pretended_cuda(small: str, folder: str, whole: str, limit: str) -> None:
    """Load the folder; writable private memory may grow by ``limit`` bytes, if any. Prints the rise of the resident.

    The limit is on RLIMIT_DATA: what is allocated and what is mapped of files as safetensors maps them, privately.
    An address space also has reservations that nobody ever touches.
    """
    import torch

    from lezo.model.load import Source, load_config, load_hashed
    from lezo.model.placement import Placement
    from tests.pretend_cuda.gpu import PretendGpu

    def loaded(path: str) -> None:
        source, place = Source(path), Placement((torch.device("cuda", 0),))
        load_hashed(source, load_config(source), dtype=torch.float16, placement=place, seed=0)

    with PretendGpu(), at_once(whole == "True"):
        loaded(small)  # whatever is made at first is there
        if int(limit):
            resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + int(limit), resource.RLIM_INFINITY))
        print(rise(lambda: loaded(folder)))


def go_back(folder: str, whole: str) -> None:
    """Load the folder in fp32, move it and go back; prints resident memory before, and its rise."""
    import torch

    from lezo.model.hashes import weights_hash
    from lezo.model.load import Source, load_config, load_hashed, rebase
    from lezo.model.placement import Placement

    source = Source(folder)
    config = load_config(source)
    model, known = load_hashed(
        source, config, dtype=torch.float32, placement=Placement((torch.device("cpu"),)), seed=0
    )
    first = weights_hash(model, known)
    with torch.no_grad():
        for theta in model.parameters():
            theta.add_(1)
    with at_once(whole == "True"):
        print(status("VmRSS"), rise(lambda: rebase(model, source, config, 0, first)))


def in_a_process(*words: object) -> str:
    """What this program prints when it is run with these words."""
    command = [sys.executable, "-m", "tests.pretend_cuda.memory", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def opt_folder(folder: Path, **shape: int) -> tuple[Path, int]:
    """A folder of an OPT model of this shape, in eight files in fp32, and its bytes."""
    import torch
    from transformers import OPTConfig

    folder.mkdir()
    width = shape["hidden_size"]
    config = OPTConfig(**{"vocab_size": 512, "ffn_dim": 4 * width, "word_embed_proj_dim": width, **shape})
    return folder, write_model(folder, config, torch.float32, 8)


SMALL = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 12}


def loading(folder: Path) -> None:
    """Host memory while a model in fp32 is loaded in fp16 on a device."""
    small, (large, size) = opt_folder(folder / "small", **SMALL)[0], opt_folder(folder / "large", **LARGE)
    print(f"host memory to load {size / MB:,.0f} MB of fp32 in 8 files, in fp16 on pretended CUDA")
    for name, whole in (("at once", True), ("tensor by tensor", False)):
        rose = int(in_a_process("load_on_pretended_cuda", small, large, whole, 0))
        print(f"  {name:<18} {rose / MB:8,.0f} MB above what was there")


def going_back(folder: Path) -> None:
    """Resident memory while the base weights of a model of SmolLM2-135M's shape come back."""
    import torch
    from transformers import LlamaConfig

    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    size = write_model(folder, LlamaConfig(**shape, **heads, tie_word_embeddings=True), torch.float32, 1)
    print(f"resident memory to bring {size / MB:,.0f} MB of fp32 back, on this CPU")
    for name, whole in (("at once", True), ("tensor by tensor", False)):
        before, rose = map(int, in_a_process("go_back", folder, whole).split())
        print(f"  {name:<18} {before / MB:8,.0f} MB before, {rose / MB:8,.0f} MB more at the peak")


def planned(folder: Path) -> None:
    """What the plan expects on the device beside what pretended CUDA counts."""
    print(f"{'MB on the device: expected, counted':<40}{'':>10}{'':>10}   above weights")
    for model in ("opt-1.3b", "opt-13b", "opt-30b"):
        for task in ("rte", "sst2", "squad"):
            print(in_a_process("compare", model, task), end="", flush=True)


def compare(model: str, task: str, visible: str = "1") -> None:
    """Print a line for each kind of work of a run, and for each device."""
    for name, weights, expected, found in compared(model, task, visible=int(visible)):
        off, within = expected / found - 1, (expected - weights) / (found - weights) - 1
        above = f"{(expected - weights) / MB:9,.0f} {(found - weights) / MB:9,.0f} {within:+.0%}"
        print(f"{model:<9} {task:<6} {name:<11} {expected / MB:9,.0f} {found / MB:9,.0f} {off:+.0%} {above}")


LENGTHS = {"rte": 300, "sst2": 60, "squad": 700}
"""Tokens of a long example of each task as OPT's tokenizer cuts it; the embedded ones are shorter."""


def as_long(example: Any, length: int) -> Any:
    """The example with a longer prompt, which its candidates still share."""
    more = max(length - max(map(len, example.input_ids)), 0)
    longer = tuple((*ids[:1], *[ids[1]] * more, *ids[1:]) for ids in example.input_ids)
    return replace(example, input_ids=longer)


def compared(model: str, task: str, *words: str, visible: int = 1) -> Iterator[tuple[str, int, int, int]]:
    """(work, bytes of weights, bytes expected, bytes counted) of steps, an evaluation's first batch and a generation.

    Where several devices are ``visible``, the blocks are over them all, and each is counted for itself.
    """
    from lezo.bench.timing import loaded
    from lezo.config.compose import compose
    from lezo.data.batches import Batches
    from lezo.data.dataset import EvalSet
    from lezo.data.pack import unit_length
    from lezo.model import load
    from lezo.model.evaluate import score_chunks
    from lezo.model.forward import Network
    from lezo.runs.build import make_evaluator, make_optimizer
    from lezo.runs.plan import ForwardSize, make_plan, shares_of
    from tests.pretend_cuda.gpu import PretendGpu
    from tests.pretend_cuda.live import Live

    size = ["task.num_train=64", "task.num_dev=64", "task.num_test=64"]
    base = [f"model={model}", "model.random_weights=true", f"model.tokenizer={load.TINY}", *size]
    base += [f"task={task}", "data=sample", "model.devices=auto", *words]
    unasked = mock.patch("lezo.runs.build.network_for", lambda model, *_, **__: Network(model))
    with (
        PretendGpu(visible) as gpu,
        Live() as live,
        unasked,
        mock.patch.object(load, "_fill", lambda *_: None),
    ):
        made: list[Network] = []
        for method, more in (("lezo", ["optim.sparsity=0.75"]), ("mezo", [])):
            config = compose([*base, f"optim={method}", *more]).config
            plan = make_plan(config)
            made = made or [loaded(config, plan)]
            weights = [live.on[number] for number in range(visible)]
            shape, shares = plan.parts.model_config, shares_of(plan.layout, plan.placement)
            sizes = [ForwardSize(shape, plan.dtype, len(own.blocks), i == 0) for i, own in enumerate(shares)]
            count = config.train.batch_size
            longest = [as_long(example, LENGTHS[task]) for example in plan.train[:count]]
            batches = Batches(
                longest,
                loss=plan.parts.task.loss,
                seed=0,
                batch_size=count,
                micro_batch_size=None,
                pad=plan.parts.pad,
                device=plan.device,
            )
            optimizer = make_optimizer(config, made[0], plan.layout, plan.blocks)
            batch = batches.make(0)
            live.peaks.clear()
            optimizer.step(0, batch)
            for i, (own, memory) in enumerate(zip(sizes, plan.memories, strict=True)):
                short = own.recorded(sorted(plan.train, key=unit_length)[-count:])
                expected = memory.weights + memory.update - short + own.recorded(longest)
                expected += own.training(longest, gradients=False, skips=bool(more))
                yield method, weights[i], expected, live.peaks[i]
            del optimizer, batch
        rows, dev = config.eval.batch_size, plan.dev
        parts = ([as_long(example, LENGTHS[task]) for example in part] for part in (dev.scored, dev.prompts))
        dev = EvalSet(*parts)
        evaluate = make_evaluator(plan, made[0], rows)
        if dev.scored:
            first = EvalSet(scored=[dev.scored[i] for i, _ in next(score_chunks(dev.scored, rows))])
            live.peaks.clear()
            replace(evaluate, metric="accuracy")(first)  # the task's own may be one of generated texts
            for i, own in enumerate(sizes):
                expected = plan.memories[i].weights + own.evaluation(dev, rows)
                yield "evaluation", weights[i], expected, live.peaks[i]
        if dev.prompts:
            first = EvalSet(prompts=sorted(dev.prompts, key=lambda p: -len(p.input_ids[0]))[:rows])
            gpu.truths = cycle([*[False] * 49, True])  # whether all rows have ended, after each of 50 ids
            live.peaks.clear()
            evaluate(first)
            for i, own in enumerate(sizes):
                expected = plan.memories[i].weights + own.generation(dev, rows)
                yield "generation", weights[i], expected, live.peaks[i]


COMMANDS: dict[str, Callable[[Path], None]] = {
    "loading": loading,
    "going_back": going_back,
    "planned": planned,
}
INNER: dict[str, Callable[..., None]] = {f.__name__: f for f in (load_on_pretended_cuda, go_back, compare)}


def main(words: list[str]) -> None:
    """Print the tables that the words name; all, where there are none."""
    if words and words[0] in INNER:
        return INNER[words[0]](*words[1:])
    for word in words or COMMANDS:
        with tempfile.TemporaryDirectory(prefix="lezo-") as folder:
            COMMANDS[word](Path(folder))
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
