"""SD, SD^(m) and D_s over the same steps: the order that theory proves, and what the determinant and cuts change."""

import numpy as np
import pytest

from flows import MatrixSequence, RandomProducts, TanhTraining
from sdkeras.dimension.same_steps import over_same_steps
from sdkeras.dimension.sharpness import sharpness_dimension
from sdkeras.results.estimates import LyapunovExponents
from sdkeras_plugins.lyapunov_qr import LyapunovQr


def training(num_steps: int, learning_rate: float = 2.0) -> np.ndarray:
    flow = TanhTraining(learning_rate=learning_rate)
    for _ in range(50):
        flow.next_jacobian()
    return np.stack([flow.next_jacobian() for _ in range(num_steps)])


def expanding(num_steps: int) -> np.ndarray:
    """Independent matrices whose leading exponents are well away from 0, with D_s inside."""
    scales = np.exp(np.linspace(0.45, -1.95, 8))
    flow = RandomProducts(8, lambda rng: rng.standard_normal((8, 8)) * scales)
    return np.stack([flow.step(np.eye(8)) for _ in range(num_steps)])


def exponents(jacobians: np.ndarray, count: int | None = None) -> LyapunovExponents:
    settings = LyapunovQr(num_exponents=count, num_steps=len(jacobians), transient=0)
    return settings.estimate(MatrixSequence(jacobians), seed=1)


@pytest.mark.parametrize("made", [training, expanding], ids=["training", "random"])
def test_the_order_over_the_same_steps(made) -> None:
    jacobians = made(96)
    ell = exponents(jacobians)
    found = over_same_steps(jacobians, ell, (1, 2, 3, 4, 8, 12))
    value = {window.num_window_steps: window.dimension for window in found.windows}
    assert all(window.num_steps == 96 for window in found.windows)
    size = jacobians.shape[1]
    for m in value:
        assert value[m] <= value[1] + 1e-9 * size
        for longer in value:
            if longer % m == 0:
                assert value[longer] <= value[m] + 1e-9 * size
        assert sharpness_dimension(ell.values) <= value[m] + 1e-9 * size
    # Not the same number throughout, or the order would say nothing.
    assert value[12] < value[1] - 0.05
    logs = np.log(np.abs(np.linalg.det(jacobians)))
    assert found.log_det == pytest.approx(logs.mean(), abs=1e-12)
    assert ell.values.sum() == pytest.approx(found.log_det, abs=1e-10)
    blocks = logs[: 96 // ell.block_size * ell.block_size].reshape(-1, ell.block_size).mean(axis=1)
    assert found.log_det_stderr == pytest.approx(np.std(blocks, ddof=1) * np.sqrt(ell.block_size / 96))


def test_the_determinant_and_the_windows_bracket_d_s_from_fewer_exponents() -> None:
    jacobians = expanding(400)
    whole = over_same_steps(jacobians, exponents(jacobians), (1, 4)).lyapunov
    assert whole.status == "determined"
    assert 4 < whole.value < 7
    few = exponents(jacobians, 3)
    found = over_same_steps(jacobians, few, (1, 4))
    assert found.lyapunov.status == "bracketed"
    low, high = found.lyapunov.interval
    sd, sd_4 = (window.dimension for window in found.windows)
    # From ell_1 .. ell_3 > 0 alone it would be [3, 8].
    assert 3 < low <= whole.value <= high == min(sd, sd_4) < 8
    assert few.values[-1] > 0
    sums, half = few.values.sum(), 0.2
    assert low == pytest.approx(3 + sums * 5 / (sums - found.log_det), abs=half)
    assert found.sharpest.value == sd_4


def test_a_constant_map_has_no_transient_growth() -> None:
    """J symmetric: SD^(m) = SD = Def. 4.2 of ln|eigenvalues|, D_s the same but for the turn of the frame."""
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((5, 5)))[0]
    logs = np.array([0.3, 0.1, -0.05, -0.7, -1.0])
    jacobians = np.stack([turn @ np.diag(np.exp(logs)) @ turn.T] * 64)
    found = over_same_steps(jacobians, exponents(jacobians), (1, 2, 16))
    expected = 3 + 0.35 / 0.7
    for window in found.windows:
        assert window.dimension == pytest.approx(expected, abs=1e-9)
    assert found.lyapunov.value <= expected + 1e-9
    assert found.lyapunov.value == pytest.approx(expected, abs=0.1)
    assert found.log_det == pytest.approx(logs.sum(), abs=1e-12)


def test_a_run_that_was_cut_short_says_which_windows_do_not_fit() -> None:
    jacobians = training(42)
    found = over_same_steps(jacobians, exponents(jacobians), (1, 2, 4))
    one, two, four = found.windows
    assert one.dimension is not None
    assert two.dimension is not None
    assert four.dimension is None
    assert four.reason == "the run ended after 42 steps, which 4 does not divide"
    assert found.sharpest is not None


def test_rounding_leaves_no_determinant() -> None:
    """A singular Jacobian: ln|det| is -infinity, and nothing is made of it."""
    jacobians = expanding(32)
    jacobians[5, :, 0] = 0.0
    found = over_same_steps(jacobians, exponents(jacobians, 3), (1,))
    assert found.log_det is None
    assert found.windows[0].num_resolved < 8


def test_exponents_over_other_steps_stand_alone() -> None:
    jacobians = expanding(64)
    ell = exponents(jacobians[:32])
    found = over_same_steps(jacobians, ell, (1, 2), comparable=False)
    assert found.sharpest.name == "SD^(2)"
    assert found.log_det is None
    assert found.lyapunov.num_steps == 32
