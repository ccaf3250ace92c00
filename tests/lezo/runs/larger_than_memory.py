"""Train a model of random weights that is larger than the memory the process may have, on a CPU; run as a program.

    python -m tests.lezo.runs.larger_than_memory opt-1.3b 2500 disk

trains OPT-1.3B in fp32 for three steps where the process may allocate 2,500 MB more than a run of a small model has left
it with (RLIMIT_DATA), with model.home=disk, and prints the peaks above that. A number of blocks of width 512 can stand
in place of the model's name. Further words are the run's.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MB = 10**6
SHORT = [
    "task=sst2",
    "data=sample",
    "task.num_train=4",
    "task.num_dev=2",
    "task.num_test=2",
    "model.device=cpu",
]
SHORT += ["model.dtype=float32", "model.random_weights=true", "optim.lr=1e-5", "train.batch_size=2"]
SHORT += ["train.steps=3", "train.eval_every=2"]


def main(model: str, limit: int, home: str, *words: str) -> int:
    """Train it; returns the run's exit code."""
    from lezo.config.compose import compose
    from lezo.model.load import TINY
    from lezo.runs.session import run

    def trained(name: str, folder: Path) -> int:
        of = (
            [f"model={name}"]
            if name.startswith("opt")
            else ["model=hf", f"model.path={_shape(folder, int(name))}"]
        )
        given = [*of, f"model.tokenizer={TINY}", *SHORT, f"model.home={home}", *words]
        return run(compose([*given, f"hydra.run.dir={folder / 'run'}"]), "larger than memory")

    with tempfile.TemporaryDirectory(prefix="lezo-") as folder:
        assert trained("1", Path(folder, "small")) == 0  # whatever is made at first is there
        allocated, anonymous = _status("VmData"), _status("RssAnon")
        resource.setrlimit(resource.RLIMIT_DATA, (allocated + limit * MB, resource.RLIM_INFINITY))
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory begins anew
        resident = _status("VmRSS")
        with _peak_of("RssAnon") as peak:
            code = trained(model, Path(folder, "large"))
        found = {"limit": limit, "anonymous": peak[0] - anonymous, "resident": _status("VmHWM") - resident}
        weights = json.loads(Path(folder, "large", "run", "result.json").read_text())["weights"]
        print(
            json.dumps({"code": code, **{k: round(v / MB) if k != "limit" else v for k, v in found.items()}}),
            weights,
        )
    return code


def _shape(folder: Path, blocks: int) -> Path:
    """A folder with the configuration of an OPT of so many blocks of 12.6 MB in fp32."""
    from transformers import OPTConfig

    shape = {"hidden_size": 512, "ffn_dim": 2048, "word_embed_proj_dim": 512, "num_attention_heads": 8}
    place = folder / "shape"
    OPTConfig(
        **shape, vocab_size=1024, num_hidden_layers=blocks, max_position_embeddings=128
    ).save_pretrained(place)
    return place


def _status(key: str) -> int:
    """Bytes that Linux says of this process under this name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


@contextmanager
def _peak_of(key: str) -> Iterator[list[int]]:
    """While it lasts, the highest that was seen, every hundredth of a second."""
    peak, over = [_status(key)], threading.Event()

    def watch() -> None:
        while not over.is_set():
            peak[0] = max(peak[0], _status(key))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], *sys.argv[4:]))
