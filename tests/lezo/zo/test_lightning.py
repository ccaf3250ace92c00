"""LeZO in a Lightning module, as installed: the same steps as by hand, resumed to the same bits."""

import logging
import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import OPTForCausalLM

import lezo
from tests.lezo.examples import run_example
from tests.lezo.small_models import VOCABULARY, opt_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip(
        "lightning", reason="Lightning is not installed (pip install 'lezo[lightning]')"
    )

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own


class Module(lightning.LightningModule):
    def __init__(self, journal=None):
        super().__init__()
        self.automatic_optimization = False  # two losses a step, and no backward
        torch.manual_seed(0)
        self.model, self.journal, self.losses = OPTForCausalLM(opt_config()).eval(), journal, []

    def configure_optimizers(self):
        return lezo.LeZO(self.model, lr=1e-2, sparsity=0.5, journal=self.journal)

    def training_step(self, batch, _):
        loss = self.optimizers().step(lambda: loss_of(self.model, batch))
        self.losses.append(loss.item())
        self.log("loss", loss)


def loss_of(model, ids):
    return cross_entropy(model(ids).logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def batches():
    return torch.randint(8, VOCABULARY, (32, 6), generator=torch.Generator().manual_seed(1)).split(8)


def trained(folder, module, epochs, **settings):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(torch.cat(batches()), batch_size=8), **settings)
    return trainer


def test_its_steps_are_those_by_hand(tmp_path):
    module = Module(tmp_path / "run.journal")
    trainer = trained(tmp_path, module, 1)
    by_hand = Module().model
    opt = lezo.LeZO(by_hand, lr=1e-2, sparsity=0.5)
    losses = [opt.step(lambda: loss_of(by_hand, batch)).item() for batch in batches()]  # noqa: B023
    assert (module.losses, trainer.global_step) == (losses, 4)
    assert lezo.weights_hash(module.model) == lezo.weights_hash(by_hand)
    assert trainer.callback_metrics["loss"].item() == losses[-1]
    again = Module().model
    assert lezo.apply_journal(again, tmp_path / "run.journal") == 4
    assert lezo.weights_hash(again) == lezo.weights_hash(by_hand)


def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path):
    """Of an epoch's end: Lightning goes on with the next one's first batch."""
    journal = tmp_path / "run.journal"
    through = Module(journal)
    trained(tmp_path, through, 2)
    content = journal.read_bytes()
    later = Module(journal)
    assert trained(tmp_path / "b", later, 2, ckpt_path=tmp_path / "epoch=0.ckpt").global_step == 8
    assert lezo.weights_hash(later.model) == lezo.weights_hash(through.model)
    assert (later.losses, journal.read_bytes()) == (through.losses[4:], content)


def test_the_pages_example_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example("lightning")
