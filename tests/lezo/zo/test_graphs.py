"""Recorded forwards give what the forwards themselves give; a CUDA graph is stood in for by a call made again."""

import pytest
import torch
from torch import nn

from lezo.data.pack import candidate_batch
from lezo.model.layout import layout
from lezo.zo.copies import Room
from lezo.zo.graphs import Recordings
from lezo.zo.probe import StreamProbe
from lezo.zo.step import Stopwatch
from lezo.zo.streams import Streams
from tests.lezo.small_models import CPU, examples, small_model

EPS = 1e-3


class Recorder:
    """Counts recordings and replays. As with a graph, recording changes no memory that was there before."""

    def __init__(self):
        self.recorded = self.replayed = 0
        self.recordings = Recordings(self)

    def __call__(self, run):
        memory = list(self.recordings._places.values())  # private: what a graph writes to only when replayed
        before = [tensor.clone() for tensor in memory]
        run()
        for tensor, content in zip(memory, before, strict=True):
            tensor.copy_(content)
        self.recorded += 1

        def replay():
            self.replayed += 1
            run()

        return replay


def probe(name, recordings=None, change=lambda model: None):
    model = small_model(name, torch.float32)
    change(model)
    record = None if recordings is None else lambda *_: recordings
    return StreamProbe(Streams(model, layout(model), Stopwatch(CPU), recordings=record))


def batches():
    """Of two shapes, a larger one after a smaller one, each in two micro-batches and met three times."""
    some = examples(9)
    sizes = [(some[:2], some[2:4]), (some[4:7], some[7:]), (some[3:5], some[5:7])] * 3
    return [[candidate_batch(part, pad=1, device=CPU) for part in parts] for parts in sizes]


@pytest.mark.parametrize("name", ["opt", "opt-350m-style", "llama", "qwen2-tied", "neox"])
@pytest.mark.parametrize("outside", [True, False], ids=["all that is outside moves", "blocks alone move"])
def test_replayed_forwards_have_the_same_bits(name, outside):
    """Blocks in turn perturbed and not, so that the streams part at any place."""
    recorder = Recorder()
    plain, replayed = probe(name), probe(name, recorder.recordings)
    tensors = layout(plain.streams.model)
    for step, batch in enumerate(batches()):
        active = tensors.active([step % 3, (step + 1) % 3][: 1 + step % 2])
        active = active if outside else active[len(tensors.non_block) :]
        expected = plain(batch, active, seed=step, eps=EPS)
        assert torch.equal(replayed(batch, active, seed=step, eps=EPS), expected)
    assert recorder.replayed > recorder.recorded > 0


def test_a_weight_that_is_updated_is_seen_by_its_recordings():
    recorder = Recorder()
    plain, replayed = probe("opt"), probe("opt", recorder.recordings)
    active, batch = layout(plain.streams.model).active([1]), batches()[0]
    for step in range(4):
        for model in (plain.streams.model, replayed.streams.model):
            with torch.no_grad():
                model.model.decoder.layers[0].fc1.weight.mul_(1.01)
        losses = [made(batch, active, seed=step, eps=EPS) for made in (plain, replayed)]
        assert torch.equal(*losses)
    assert recorder.replayed


def test_what_a_recording_cannot_hold_runs_as_it_is():
    """An argument that is neither a tensor nor a plain value, and an output of two tensors."""
    recorder = Recorder()
    states = torch.ones(2, 3)
    for _ in range(3):
        held = recorder.recordings.run("a", 1, lambda x, cache: x + 1, (states, object()), {})
        both = recorder.recordings.run("b", 2, lambda x: (x + 1, x + 2), (states,), {})
        assert torch.equal(held, states + 1) and torch.equal(both[1], states + 2)
    assert recorder.replayed == 0


def test_weights_in_another_place_are_recorded_anew():
    """As after `parameter.data = ...`, where a recording would read what lies in the old place."""
    recorder = Recorder()
    replayed, batch = probe("opt", recorder.recordings), batches()[0]
    active, weight = (
        layout(replayed.streams.model).active([1]),
        replayed.streams.model.model.decoder.layers[0].fc1.weight,
    )

    def recorded(steps):
        before = recorder.recorded
        for step in range(steps):
            replayed(batch, active, seed=step, eps=EPS)
        return recorder.recorded - before

    assert recorded(3) and not recorded(2)
    weight.data = weight.data.clone()
    assert recorded(3) == len(batch)


def test_copies_in_another_place_are_recorded_anew(monkeypatch):
    """A larger block makes their room grow, which may begin where the one before it began."""
    memory = torch.empty(2**17, dtype=torch.uint8)

    def make_room(room, size, _):
        if room._memory is None or room._memory.shape[1] < size:
            room._pairs, room._memory = {}, memory[: 2 * size].view(2, size)

    def widened(model):
        block = model.model.decoder.layers[1]
        block.fc1, block.fc2 = nn.Linear(16, 64), nn.Linear(64, 16)

    monkeypatch.setattr(Room, "_make_room", make_room)
    recorder = Recorder()
    replayed, plain = probe("opt", recorder.recordings, widened), probe("opt", change=widened)
    blocks, batch = layout(plain.streams.model).blocks, batches()[0]
    for step, block in enumerate([0, 0, 0, 1, 0]):
        given = {"active": blocks[block], "seed": step, "eps": EPS}
        replayed_losses = replayed(batch, **given)
        assert torch.equal(replayed_losses, plain(batch, **given)), step
    assert recorder.replayed


def test_a_device_that_refuses_to_record_runs_blocks_as_they_are():
    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    replayed, plain = probe("opt", Recordings(refuse)), probe("opt")
    active, batch = layout(plain.streams.model).active([1]), batches()[0]
    with pytest.warns(UserWarning, match="not permitted when stream is capturing"):
        found = replayed(batch, active, seed=3, eps=EPS)
    assert torch.equal(found, plain(batch, active, seed=3, eps=EPS))
    assert torch.equal(replayed(batch, active, seed=4, eps=EPS), plain(batch, active, seed=4, eps=EPS))
