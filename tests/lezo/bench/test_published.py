"""A published step that the user's folder has, on a stand-in of its trainer; the folder's code is written here."""

from pathlib import Path

import pytest
import torch

from lezo.bench.published import published_methods, published_step
from lezo.bench.textbook import candidate_rows, textbook_loss
from lezo.model.load import ModelError
from lezo.zo.step import Stopwatch
from tests.lezo.model.test_loss import CPU, examples
from tests.lezo.refusals import refused
from tests.lezo.small_models import small_model, weights

# A step along the sign of one draw, so that nothing of another's code is needed to try the interface.
TRAINER = """
from a_library_of_its_time import Trainer, absent


class Mine(Trainer):
    def unrelated(self):
        raise SystemExit

    def zo_perturb_parameters(self, random_seed=None, scaling_factor=1):
        torch.manual_seed(self.zo_random_seed if random_seed is None else random_seed)
        for name, theta in self.moving:
            theta.data = theta.data + scaling_factor * self.args.zo_eps * torch.randn_like(theta).sign()

    def zo_forward(self, model: absent, inputs: absent) -> absent:
        with torch.inference_mode(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach()

    def zo_step(self, model, inputs):
        self.moving = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.zo_random_seed = np.random.randint(1000)
        self.zo_perturb_parameters(scaling_factor=1)
        one = self.zo_forward(model, inputs)
        self.zo_perturb_parameters(scaling_factor=-2)
        two = self.zo_forward(model, inputs)
        self.projected_grad = ((one - two) / (2 * self.args.zo_eps)).item()
        self.zo_perturb_parameters(scaling_factor=1)
        return one

    def zo_update(self, model):
        torch.manual_seed(self.zo_random_seed)
        for name, theta in self.moving:
            step = self._get_learning_rate() * self.projected_grad * torch.randn_like(theta).sign()
            theta.data = theta.data - step - self._get_learning_rate() * self.args.weight_decay * theta.data
        self.lr_scheduler.step()
"""
SETTINGS = {"lm": False, "pad": 1, "eps": 1e-3, "weight_decay": 0.0, "seed": 3}


@pytest.mark.parametrize("place", ["trainer.py", "large_models/trainer.py"])
def test_its_step_is_taken_as_it_stands_and_its_imports_are_not(tmp_path: Path, place: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(TRAINER)
    model, watch = small_model(dtype=torch.float64), Stopwatch(CPU)
    before, made = weights(model), examples()
    rows = candidate_rows(made, lm=False, pad=1, device=CPU)
    with torch.no_grad():
        loss = textbook_loss(model, rows).item()
    step = published_step(str(tmp_path), model, watch, lr=1e-4, **SETTINGS)
    step(0, made)
    moved = {name: (theta - before[name]).abs() for name, theta in weights(model).items()}
    sizes = torch.cat([one.flatten() for one in moved.values()])
    assert sizes.max() > 1e-9 and torch.allclose(sizes, sizes.max(), atol=1e-12)  # lr |g|, in each element
    with torch.no_grad():
        assert textbook_loss(model, rows).item() < loss
    assert set(watch.lap()) == {"data", "forward"}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "no trainer.py"),
        ("class Mine:\n    def zo_step(self): pass\n", "has no class with zo_step"),
        ("class", "no Python"),
    ],
)
def test_what_has_no_such_step_is_refused(code: str | None, said: str, tmp_path: Path) -> None:
    if code is not None:
        (tmp_path / "trainer.py").write_text(code)
    with refused(ModelError, f"bench.mezo_path={tmp_path}: ", said):
        published_methods(str(tmp_path))
