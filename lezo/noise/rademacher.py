"""z of signs: -1 or 1 with the same chance, one bit of `lezo.noise.philox` an element, by the same kernels.

Of variance one as the Gaussian, and E[z z^T] = I likewise, so that g z is as unbiased. All weights move by the same amount.
"""

from __future__ import annotations

from functools import partial

from lezo.noise import directions, philox


class Rademacher:
    """The direction: `lezo.noise.directions` with signs in the place of normals, of one tensor and of many."""

    perturb = staticmethod(partial(directions.perturb, draw=philox.SIGNS))
    perturbations = staticmethod(partial(directions.perturbations, draw=philox.SIGNS))
    update_ = staticmethod(partial(directions.update_, draw=philox.SIGNS))
    update_all_ = staticmethod(partial(directions.update_all_, draw=philox.SIGNS))
