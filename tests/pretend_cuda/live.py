"""Bytes that live on a pretended device, as an allocator that wastes nothing would count them."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.pretend_cuda.gpu import PretendGpu

aten = torch.ops.aten
INSIDE = {aten.logsumexp.default}
"""Operators that hold as much as their operand while they run, for its exponentials."""


class Live:
    """Counts while its context lasts: ``now`` bytes of storages, and the ``peak`` since it was last set.

    ``on`` and ``peaks`` are the same by a device's number.

    Counted is what operators return, and what some are known to hold while they run; matrix products' and
    attention's own working memory is not.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.on, self.peaks = Counter[int](), Counter[int]()
        self._known = set[int]()
        self._patch = mock.patch.object(PretendGpu, "run", self._counting(PretendGpu.run))

    def __enter__(self) -> Live:
        self._patch.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._patch.stop()

    def _counting(self, run: Any) -> Any:
        def counted(gpu: PretendGpu, operator: Any, args: Any, kwargs: Any) -> Any:
            result = run(gpu, operator, args, kwargs)
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.device.type == "cuda":
                    self._seen(leaf.untyped_storage(), leaf.device.index)
            held = args[0].nbytes if operator in INSIDE else 0
            self.peak = max(self.peak, self.now + held)
            for number, bytes_ in self.on.items():
                own = held if held and args[0].device.index == number else 0
                self.peaks[number] = max(self.peaks[number], bytes_ + own)
            return result

        return counted

    def _seen(self, storage: torch.UntypedStorage, number: int) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.on[number] += size
            weakref.finalize(storage, self._gone, key, size, number)

    def _gone(self, key: int, size: int, number: int) -> None:
        self._known.discard(key)
        self.now -= size
        self.on[number] -= size
