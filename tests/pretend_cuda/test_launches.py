"""A step launches one kernel a block to perturb, and one to update."""

import pytest
from transformers.models.opt.modeling_opt import OPTDecoderLayer

pytest.importorskip("triton", reason="Triton is not installed (it comes with lezo[test], on Linux)")

from tests.pretend_cuda.launches import launches, narrow  # noqa: E402

pytestmark = pytest.mark.pretend_cuda


@pytest.mark.usefixtures("_nothing_real")
def test_launches_of_a_step_of_opt_13b(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside its 10 and 40 blocks: rows of the embeddings, positions, final norm, rows of the head, the update.

    What a block computes launches nothing of ours, and here is nothing.
    """
    monkeypatch.setattr(OPTDecoderLayer, "forward", lambda _, hidden_states, *__, **___: hidden_states)
    assert launches("opt-13b", narrow) == [10 + 5, 40 + 5]
