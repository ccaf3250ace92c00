"""LeZO with accelerate: a prepared model, loader, scheduler and optimizer, saved and gone on with; see test_processes for several."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import OPTForCausalLM

import lezo
from tests.lezo.small_models import VOCABULARY, opt_config

accelerate = pytest.importorskip(
    "accelerate", reason="accelerate is not installed (pip install 'lezo[trainer]')"
)


def batches():
    return torch.randint(8, VOCABULARY, (32, 6), generator=torch.Generator().manual_seed(1)).split(8)


def model():
    torch.manual_seed(0)
    return OPTForCausalLM(opt_config()).eval()


def loss_of(model, ids):
    return cross_entropy(model(ids).logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


class Prepared:
    def __init__(self, **settings):
        self.accelerator = accelerate.Accelerator(cpu=True, **settings)
        made = model()
        opt = lezo.LeZO(made, lr=1e-2, sparsity=0.5)
        schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.25, 4)
        loader = DataLoader(torch.cat(batches()), batch_size=8)
        self.model, self.opt, self.loader, self.schedule = self.accelerator.prepare(
            made, opt, loader, schedule
        )
        self.zo = self.opt.optimizer

    def train(self, steps=slice(None)):
        for batch in [*self.loader][steps]:
            self.opt.step(lambda: loss_of(self.model, batch))  # noqa: B023
            self.schedule.step()


def by_hand():
    made = model()
    opt = lezo.LeZO(made, lr=1e-2, sparsity=0.5)
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.25, 4)
    for batch in batches():
        opt.step(lambda: loss_of(made, batch))  # noqa: B023
        schedule.step()
    return opt


def test_prepared_steps_are_those_by_hand():
    prepared, opt = Prepared(), by_hand()
    prepared.train()
    assert (prepared.zo.steps, prepared.zo.last.loss) == (4, opt.last.loss)
    assert prepared.zo.last.measures == opt.last.measures
    assert lezo.weights_hash(prepared.model) == lezo.weights_hash(opt.model)


def test_a_saved_state_goes_on_to_the_same_bits(tmp_path):
    first = Prepared()
    first.train(slice(0, 2))
    first.accelerator.save_state(str(tmp_path))
    later = Prepared()
    later.accelerator.load_state(str(tmp_path))
    assert later.zo.steps == 2
    later.train(slice(2, 4))
    assert lezo.weights_hash(later.model) == lezo.weights_hash(by_hand().model)


def test_accumulated_batches_make_one_step():
    prepared = Prepared(gradient_accumulation_steps=2)
    for batch in prepared.loader:
        with prepared.accelerator.accumulate(prepared.model):
            prepared.zo.probe(lambda: loss_of(prepared.model, batch) / 2)  # noqa: B023
            prepared.opt.step()
            prepared.opt.zero_grad()
    whole = model()
    opt = lezo.LeZO(whole, lr=1e-2, sparsity=0.5)
    first, second = batches()[:2]
    opt.step(lambda: loss_of(whole, torch.cat([first, second])))
    assert prepared.zo.steps == 2 and opt.last.applied
