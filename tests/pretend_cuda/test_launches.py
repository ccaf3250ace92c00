"""A step launches one kernel a block to perturb, and one to update."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it comes with lezo[test], on Linux)")

from tests.pretend_cuda.launches import launches, narrow  # noqa: E402

pytestmark = pytest.mark.pretend_cuda


@pytest.mark.usefixtures("_nothing_real")
@pytest.mark.parametrize(("optim", "blocks"), [("lezo", 10), ("mezo", 40)])
def test_launches_of_a_step_of_opt_13b(optim: str, blocks: int) -> None:
    """Beside the blocks: rows of the embeddings, positions, final norm, rows of the head, the update."""
    assert launches("opt-13b", optim, narrow) == blocks + 5
