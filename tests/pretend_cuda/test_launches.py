"""A step launches one kernel a block to perturb, and one to update."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it comes with lezo[test], on Linux)")

from tests.pretend_cuda.launches import launches, narrow  # noqa: E402

pytestmark = pytest.mark.pretend_cuda


@pytest.mark.usefixtures("_nothing_real")
def test_launches_of_a_step_of_opt_13b() -> None:
    """Beside its 10 and 40 blocks: rows of the embeddings, positions, final norm, rows of the head, the update."""
    assert launches("opt-13b", narrow) == [10 + 5, 40 + 5]
