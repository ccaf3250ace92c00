"""What a probe holds beyond theta: a forward over both streams, and two copies of one block."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from lezo.data.encode import Encoded
from lezo.data.pack import candidate_batch
from lezo.model.forward import Network
from lezo.model.layout import layout
from lezo.model.loss import answer_scores
from lezo.zo.probe import StreamProbe
from lezo.zo.step import Stopwatch
from lezo.zo.streams import Streams
from tests.lezo.small_models import CPU, opt_config


class Live(TorchDispatchMode):
    """Bytes of the storages that torch makes while it lasts: ``now``, and ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            if storage._cdata not in self._known | given:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.now -= size


def batch_of(count: int):
    made = [
        Encoded(i, ((0, *range(4, 44), 45 + k), (0, *range(4, 44), 50)), (1, 1), (0,))
        for i, k in enumerate([1] * count)
    ]
    return candidate_batch(made, pad=1, device=CPU)


def test_a_probe_holds_an_evaluation_of_both_streams_and_two_blocks():
    shape = {"hidden_size": 128, "ffn_dim": 512, "word_embed_proj_dim": 128, "num_hidden_layers": 6}
    model = AutoModelForCausalLM.from_config(opt_config(**shape)).eval()
    found = layout(model)
    block = sum(p.numel() * 4 for p in model.get_submodule(found.modules[0]).parameters())
    positions = sum(model.get_parameter(name).numel() * 4 for name in found.non_block)
    with torch.no_grad(), Live() as evaluation:
        answer_scores(Network(model), batch_of(32))
    probe = StreamProbe(Streams(model, found, Stopwatch(CPU)))
    with Live() as training:
        probe([batch_of(16)], found.active(range(6)), seed=1, eps=1e-3)
    assert block * 2 < training.peak < evaluation.peak + 2 * block + 2 * positions
    assert training.now < 2 * block + 2 * positions + 2**16  # the scratch copies stay for the next step
