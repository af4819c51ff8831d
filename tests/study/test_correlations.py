"""Kendall's tau-b by hand and against SciPy, granulated coefficients by hand, the bootstrap's coverage."""

import csv
import io
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sdkeras.errors import SdkerasError
from sdkeras.study.correlations import (
    Correlations,
    MeasureCorrelation,
    Run,
    coefficient,
    correlate,
    holm,
    kendall_tau_b,
)


def table(values: Sequence, gaps: Sequence, **settings: Sequence) -> list[Run]:
    """Runs of one measure."""
    each = (dict(zip(settings, row, strict=True)) for row in zip(*settings.values(), strict=True))
    rows = zip(each, values, gaps, strict=True)
    return [Run(settings=where, measures={"m": value}, accuracy_gap=gap) for where, value, gap in rows]


def row_of(runs: list[Run], **options: Any) -> MeasureCorrelation:
    (row,) = correlate(runs, **options).rows
    return row


# tau-b


def test_tau_b_by_hand_with_ties() -> None:
    """x = 1 1 2 3, y = 1 2 2 3: pairs (12) tied in x, (23) tied in y, the other four concordant: 4 / sqrt(5 * 5)."""
    x, y = np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 2, 3])
    assert kendall_tau_b(x, y)[0] == pytest.approx(4 / 5)
    row = row_of(table(x, y, run=range(4)))
    assert row.tau_b == pytest.approx(4 / 5)
    assert row.num_runs == 4


def test_tau_b_is_scipys_with_ties_and_with_repeated_runs() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 30).astype(float)
    y = x + rng.integers(0, 4, 30)
    y[3] = math.inf
    counts = rng.integers(0, 4, (20, 30))
    expected = [scipy.stats.kendalltau(np.repeat(x, c), np.repeat(y, c))[0] for c in counts]
    np.testing.assert_allclose(kendall_tau_b(x, y, counts.astype(float)), expected, rtol=1e-12, atol=1e-14)
    row = row_of(table(x, y, run=range(30)))
    assert (row.tau_b, row.p_value) == pytest.approx(scipy.stats.kendalltau(x, y), rel=1e-12)
    assert row.tau_b != pytest.approx(scipy.stats.kendalltau(x, y, variant="c")[0], abs=1e-3)
    assert math.isnan(kendall_tau_b(x[:1], y[:1])[0])


def test_where_nothing_varies_there_is_no_coefficient() -> None:
    row = row_of(table([1.0] * 6, range(6), rate=range(6)))
    assert (row.tau_b, row.interval, row.p_value, row.num_usable) == (None, None, None, 0)
    (part,) = row.granulated
    assert (part.psi, part.interval, part.num_groups, part.num_skipped) == (None, None, 0, 1)
    assert (row.psi_mean, row.psi_mean_interval) == (None, None)


# Granulated coefficients


def test_granulated_coefficients_of_a_grid_by_hand() -> None:
    """2 rates x 2 batch sizes x 2 seeds; the pairs within groups, counted by hand.

    (rate, batch, seed): measure, gap        rate varies in the groups (batch, seed), the batch size in (rate, seed)
    (0,0,0): 1, 1   (1,0,0): 2, 3            batch 0, seed 0: +1     rate 0, seed 0: 1->2, 1->2: +1
    (0,1,0): 2, 2   (1,1,0): 4, 1            batch 1, seed 0: -1     rate 1, seed 0: 2->4, 3->1: -1
    (0,0,1): 1, 2   (1,0,1): 3, 5            batch 0, seed 1: +1     rate 0, seed 1: 1->0, 2->1: +1
    (0,1,1): 0, 1   (1,1,1): 0, 4            batch 1, seed 1: tied   rate 1, seed 1: 3->0, 5->4: +1
    psi_rate = (1 - 1 + 1) / 3 = 1/3, psi_batch = (1 - 1 + 1 + 1) / 4 = 1/2, mean 5/12; a tie as 0 would give 1/4.
    """
    values, gaps = [1, 2, 2, 4, 1, 3, 0, 0], [1, 3, 2, 1, 2, 5, 1, 4]
    runs = table(values, gaps, seed=[0] * 4 + [1] * 4, batch=[0, 0, 1, 1] * 2, rate=[0, 1] * 4)
    assert correlate(runs).settings == ("batch", "rate")
    row = row_of(runs)
    batch, rate = row.granulated
    assert rate.psi == pytest.approx(1 / 3)
    assert (rate.num_groups, rate.num_skipped) == (3, 1)
    assert batch.psi == pytest.approx(1 / 2)
    assert (batch.num_groups, batch.num_skipped) == (4, 0)
    assert row.psi_mean == pytest.approx(5 / 12)
    assert rate.interval is None  # three groups
    backwards = row_of(runs[::-1])
    assert backwards.tau_b == pytest.approx(row.tau_b)
    assert {part.setting: part.psi for part in backwards.granulated} == pytest.approx(
        {part.setting: part.psi for part in row.granulated}
    )
    # The seed as a hyperparameter of its own, if that is asked for.
    assert correlate(runs, held=()).settings == ("seed", "batch", "rate")


def test_a_measure_that_only_follows_one_setting_has_no_psi_for_the_other() -> None:
    """Simpson: within each batch size the gap falls with the measure, over all runs it rises."""
    batches, rates = np.divmod(np.arange(25), 5)
    row = row_of(table(10 * batches + rates, 10 * batches - rates, rate=rates.tolist(), batch=batches.tolist()))
    assert row.tau_b == pytest.approx((250 - 50) / 300)
    assert [part.psi for part in row.granulated] == [-1, 1]
    # Five groups that all say the same are no certainty.
    assert [part.interval for part in row.granulated] == [None, None]
    assert row.psi_mean == 0
    assert row.psi_mean_interval is None


def test_missing_values_are_left_out_and_counted() -> None:
    runs = table([1.0, None, 3.0, 2.0, math.nan, 5.0], [1, 9, 3, 2, 0, None], rate=range(6))
    runs[2] = Run(settings={"rate": 2}, measures={"m": 3.0, "other": 1.0}, accuracy_gap=3.0, loss_gap=0.5)
    rows = {(row.measure, row.target): row for row in correlate(runs).rows}
    assert set(rows) == set(itertools.product(("m", "other"), ("accuracy_gap", "loss_gap")))
    row = rows["m", "accuracy_gap"]
    assert (row.tau_b, row.num_runs, row.num_missing) == (1, 3, 3)
    assert row.granulated[0].psi == 1
    row = rows["other", "loss_gap"]
    assert (row.tau_b, row.num_runs, row.num_missing) == (None, 1, 5)


# Bootstrap


def test_the_bootstrap_is_seeded() -> None:
    runs = table(*np.random.default_rng(2).random((2, 20)), rate=range(20))
    assert correlate(runs, seed=1) == correlate(runs, seed=1)
    assert row_of(runs, seed=1).interval != row_of(runs, seed=2).interval
    assert row_of(runs).num_usable == 2000


def test_intervals_cover_the_truth() -> None:
    """Normal pairs of correlation r have tau = 2/pi arcsin r. 300 tables of 30 runs: 95 % +- 5 standard errors, the
    percentile interval's own shortfall at 30 runs (2 % or so) allowed for below."""
    r, repeats = 0.6, 300
    truth = 2 / math.pi * math.asin(r)
    covered = halved = 0
    for k in range(repeats):
        x, noise = np.random.default_rng([3, k]).standard_normal((2, 30))
        low, high = row_of(table(x, r * x + 0.8 * noise, rate=range(30)), num_resamples=400).interval
        covered += low <= truth <= high
        middle, half = (low + high) / 2, (high - low) / 4
        halved += middle - half <= truth <= middle + half
    error = 5 * math.sqrt(0.05 * 0.95 / repeats)
    assert 0.93 - error < covered / repeats < 0.95 + error
    assert halved / repeats < 0.93 - error


def test_intervals_of_psi_cover_the_truth() -> None:
    """Groups of two runs that agree with probability p: psi = 2p - 1 over 20 groups."""
    p, covered = 0.7, 0
    rates, batches = [0, 1] * 20, np.repeat(range(20), 2).tolist()
    for k in range(200):
        agree = np.random.default_rng([4, k]).random(20) < p
        gaps = np.where(np.repeat(agree, 2), rates, 1 - np.array(rates))
        rate, _ = row_of(table(rates, gaps, rate=rates, batch=batches), num_resamples=200).granulated
        low, high = rate.interval
        covered += low - 1e-9 <= 2 * p - 1 <= high + 1e-9
    assert 0.87 < covered / 200 < 0.99  # the mean of 20 signs moves in steps of 0.1


def test_runs_that_differ_in_the_seed_alone_are_no_evidence_of_their_own() -> None:
    """Ten settings with five seeds that all but repeat each other, without association: p < 0.05 in 5 % of 200 tables,
    and the interval holds 0 in 95 % but for the percentile interval's shortfall at 10 units, each +- 5 standard errors.

    Of 50 runs taken for independent, p would be below 0.05 in a third of the tables.
    """
    repeats, false, covered, as_runs = 200, 0, 0, 0
    rates, seeds = np.repeat(range(10), 5).tolist(), [0, 1, 2, 3, 4] * 10
    for k in range(repeats):
        generator = np.random.default_rng([5, k])
        x, y = (np.repeat(generator.random(10), 5) + 1e-3 * generator.random(50) for _ in range(2))
        row = row_of(table(x, y, rate=rates, seed=seeds), num_resamples=200)
        false += row.p_value < 0.05
        covered += row.interval[0] <= 0 <= row.interval[1]
        as_runs += scipy.stats.kendalltau(x, y).pvalue < 0.05
    error = 5 * math.sqrt(0.05 * 0.95 / repeats)
    assert false / repeats < 0.05 + error < as_runs / repeats
    assert covered / repeats > 0.90 - error


def test_seeds_alone_are_units_and_one_seed_changes_nothing() -> None:
    x, y = np.random.default_rng(6).random((2, 12))
    alone = row_of(table(x, y, seed=range(12)))
    plain = row_of(table(x, y, rate=range(12)))
    assert (alone.tau_b, alone.interval, alone.p_value) == (plain.tau_b, plain.interval, plain.p_value)
    with_seed = row_of(table(x, y, rate=range(12), seed=[3] * 12))
    assert (with_seed.interval, with_seed.p_value) == (plain.interval, plain.p_value)


def test_groups_that_differ_in_the_seed_alone_are_resampled_together() -> None:
    """Two batch sizes with five seeds: ten groups of rates, and two units are too few for an interval."""
    x, y = np.random.default_rng(7).random((2, 20))
    settings = {"rate": [0, 1] * 10, "batch": [0] * 10 + [1] * 10, "seed": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] * 2}
    batch, rate = sorted(row_of(table(x, y, **settings)).granulated, key=lambda each: each.setting)
    assert (rate.num_groups, batch.num_groups) == (10, 10)
    assert rate.interval is None
    alone = {name: values[:10] for name, values in settings.items()}  # one batch size: the seeds are the units
    (rate,) = row_of(table(x[:10], y[:10], **alone)).granulated
    assert rate.num_groups == 5
    assert rate.interval is not None


# Output


@pytest.fixture(scope="module")
def found() -> Correlations:
    rng = np.random.default_rng(5)
    runs = [
        Run(
            settings={"rate": rate, "batch": batch},
            measures={"SD": float(rng.random()), 'a, "b"': None if rate == 0.1 else float(rng.random())},
            accuracy_gap=float(rng.random()),
            loss_gap=float(rng.random()),
        )
        for rate, batch in itertools.product((0.1, 0.2, 0.3), (32, 64, 128))
    ]
    return correlate(runs)


RATES = np.repeat([0.1, 0.2, 0.3], 3)


def test_json_gives_the_record_back(found: Correlations, tmp_path) -> None:
    found.save(tmp_path / "correlations.json")
    read = Correlations.load(tmp_path / "correlations.json")
    assert read == found
    assert read.rows == found.rows
    with pytest.raises(SdkerasError, match=r"correlations\.json"):
        Correlations.from_json('{"schema_version": 1}')


def test_every_two_measures_and_gaps_have_a_coefficient(found: Correlations) -> None:
    """SciPy's of the runs that have both; where a gap is one of the two it is that of `rows`."""
    names = ["SD", 'a, "b"', "accuracy_gap", "loss_gap"]
    assert [(pair.first, pair.second) for pair in found.between] == list(itertools.combinations(names, 2))
    rng = np.random.default_rng(5)
    values = [[float(rng.random()) if rate != 0.1 or k else np.nan for k in (1, 0, 1, 1)] for rate in RATES]
    columns = dict(zip(names, np.array(values).T, strict=True))
    for pair in found.between:
        two = np.array([columns[pair.first], columns[pair.second]])
        two = two[:, ~np.isnan(two).any(axis=0)]
        tau, p_value = scipy.stats.kendalltau(*two)
        assert (pair.tau_b, pair.p_value) == pytest.approx((tau, p_value), abs=1e-12)
        assert pair.num_runs == two.shape[1]
        assert pair.interval[0] <= pair.tau_b <= pair.interval[1]
    rows = {(row.measure, row.target): (row.tau_b, row.interval) for row in found.rows}
    pairs = {(pair.first, pair.second): (pair.tau_b, pair.interval) for pair in found.between}
    assert rows.items() <= pairs.items()
    old = {key: value for key, value in json.loads(found.to_json()).items() if key != "between"}
    assert Correlations.from_json(json.dumps(old)).between == ()


def test_csv_and_text_have_every_row(found: Correlations) -> None:
    read = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(read) == len(found.rows) == 4
    for line, row in zip(read, found.rows, strict=True):
        assert (line["measure"], line["target"]) == (row.measure, row.target)
        assert float(line["tau_b"]) == row.tau_b
        assert float(line["tau_b_low"]) == row.interval[0]
        assert float(line["psi_rate"]) == row.granulated[0].psi
        assert line["psi_rate_low"] == ""  # three groups
        assert int(line["num_runs"]) == row.num_runs
        assert None not in line.values()
    assert all(len(cells) == len(found.header()) for cells in found.cells())
    text = str(found).splitlines()
    assert len(text) == 5
    assert f"{found.rows[0].tau_b:+.2f} [" in text[1]
    assert "6 (3 missing)" in text[3]


def test_coefficients_as_text() -> None:
    assert coefficient(-0.001) == "+0.00"
    assert coefficient(0.126, (-0.5, 1.0)) == "+0.13 [-0.50, +1.00]"
    assert coefficient(None) == coefficient(math.nan) == "-"


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (table([1], [1], rate=[1]), "at least 2 runs"),
        (table([1, 2, 3], [1, 2, 3], rate=[1, 2, 1]), "runs 0 and 2 have the same settings"),
        ([*table([1], [1], rate=[1]), *table([1], [1], rate=[2], batch=[1])], r"run 1 .*\(batch\)"),
        (table([1, 2], [1, 2], rate=[1, math.nan]), "rate is nan"),
        (table([1, 2], [None, None], rate=[1, 2]), "neither an accuracy gap"),
    ],
)
def test_runs_that_cannot_be_grouped_are_refused(runs: list[Run], said: str) -> None:
    with pytest.raises(SdkerasError, match=said):
        correlate(runs)


def test_too_few_resamples_are_refused() -> None:
    with pytest.raises(SdkerasError, match="num_resamples"):
        correlate(table([1, 2], [1, 2], rate=[1, 2]), num_resamples=10)


def test_holm_by_hand() -> None:
    """0.01 * 4, 0.02 * 3, then 0.03 * 2 and 0.031, which must not be smaller than the one before."""
    assert holm([0.03, 0.01, None, 0.031, 0.02]) == (
        pytest.approx(0.06),
        pytest.approx(0.04),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    )
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()
    assert holm([0.5]) == (0.5,)
