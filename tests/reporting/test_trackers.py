"""Trackers: what they are sent, read back from their own files; and that a broken one stops nothing."""

import asyncio
import json
import logging
import math
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest

import sample_runs
from kept_trackers import Kept, stand_ins
from sample_log import FOUND, HEADER
from sdkeras.errors import SdkerasError
from sdkeras.reporting.trackers import names, reporter
from sdkeras.reporting.trackers.histogram import histogram
from sdkeras.reporting.trackers.names import check_trackers
from sdkeras.reporting.trackers.reporter import numbers_of, open_reporter, reporting
from sdkeras.results.answers import SpectrumSummary
from sdkeras.results.log import RunLog

# Three clusters and a negative outlier, of masses that are no whole numbers.
SPECTRUM = SpectrumSummary(np.array([-1.5, 0.0, 0.01, 3.0, 12.0]), np.array([0.5, 1990.25, 6.0, 2.25, 1.0]))
RUN = attrs.evolve(sample_runs.RUN, spectrum=SPECTRUM)
LATER = attrs.evolve(FOUND, step=20, epoch=2)
SETTINGS = {"optimizer": "SGD", "learning_rate": 0.1, "batch_size": 32, "seed": 0}
KEYS = {
    "sharpness": 12.0,
    "sharpness.residual": 0.01,
    "sharpness_dimension": 1530.0,
    "sharpness_dimension/lower": 1520.0,
    "sharpness_dimension/upper": 1540.0,
    "learning_rate": 0.1,
    "epoch": 1.0,
}
PATHS = {
    "hessian.largest.value": 12.0,
    "sharpness_dimension.codimension": 469.75,
    "sharpness_dimension.codimension/lower": 460.0,
    "sharpness_dimension.codimension/upper": 479.5,
    "edge_of_stability.ratio": 0.6,
    "rds_sharpness.leading.0": 0.5,
    "provenance.num_hvps": 1234.0,
}


def check_spectrum(edges: Sequence[float], masses: Sequence[float]) -> None:
    """Mass and the first two moments of the nodes, each known within what a bin's width lets it be off."""
    edges, masses = np.asarray(edges, float), np.asarray(masses, float)
    nodes, weights = SPECTRUM.nodes, SPECTRUM.weights
    assert masses.sum() == pytest.approx(weights.sum(), rel=1e-12)
    assert (edges[0], edges[-1]) == (nodes[0], nodes[-1])
    centres, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges).max() / 2
    assert half < 0.11
    mean, total = weights @ nodes, weights.sum()
    assert abs(masses @ centres - mean) <= half * total * (1 + 1e-12)
    largest = np.abs(nodes).max()
    assert abs(masses @ centres**2 - weights @ nodes**2) <= (2 * largest * half + half**2) * total
    assert masses[-1] == pytest.approx(1.0)  # the node 12, alone in the last bin
    assert masses[0] == pytest.approx(0.5)


# What is sent


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kept]:
    return stand_ins(monkeypatch)


def test_a_training_by_the_callbacks_keys_at_its_steps(kept) -> None:
    with reporting("wandb") as to:
        to.measurement(HEADER, FOUND, SPECTRUM)
        to.measurement(HEADER, LATER)
        to.page("track", RunLog(HEADER, (FOUND, LATER)))
    tracker = kept["wandb"]
    assert [step for step, _, _ in tracker.rows] == [10, 20]
    first = tracker.rows[0][1]
    assert first.items() >= KEYS.items()
    # Of `fit`'s own metrics others tell, and of a NaN nobody.
    assert not [name for name in first if "loss" in name or name == "hessian_trace"]
    assert all(math.isfinite(value) for value in first.values())
    assert tracker.settings_of == SETTINGS
    assert tracker.pages["track"].headline == "Below the edge of stability at step 20"
    assert (tracker.rows[0][2] is SPECTRUM, tracker.rows[1][2], tracker.ended) == (True, None, [False])


def test_a_checkpoints_metrics_are_measured_and_told(kept) -> None:
    with reporting("wandb") as to:
        to.measurement(HEADER, attrs.evolve(FOUND, source="a.keras"))
    assert kept["wandb"].rows[0][1]["metrics.val_loss"] == 0.75


def test_an_analysis_by_its_paths(kept) -> None:
    with reporting("wandb") as to:
        to.analysis(RUN)
    tracker = kept["wandb"]
    ((step, numbers, spectrum),) = tracker.rows
    assert (step, spectrum is SPECTRUM, set(tracker.pages)) == (30, True, {"report"})
    assert numbers.items() >= PATHS.items()
    document = json.loads(RUN.to_json())
    for path, value in numbers.items():
        at = document
        for name in path.partition("/")[0].split("."):
            at = at[int(name)] if isinstance(at, list) else at[name]
        assert "/" in path or at == value
    assert not [path for path in numbers if path.startswith(("spectrum", "rds_sharpness.values"))]


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(kept, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sdkeras"), reporting(("mlflow", "wandb")) as to:
        for each in (FOUND, LATER, attrs.evolve(LATER, step=30)):
            to.measurement(HEADER, each)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["sdkeras: nothing more is reported to mlflow, which failed: ConnectionError: the server is gone"]
    assert [len(kept[name].rows) for name in ("mlflow", "wandb")] == [1, 3]
    assert kept["mlflow"].ended == [True]


@pytest.mark.parametrize("failure", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("gone")], ids=repr)
def test_a_tracker_decides_no_exit_status(kept, monkeypatch, caplog: pytest.LogCaptureFixture, failure) -> None:
    """What is no Exception ends nobody's process either: not at a number, at the end of a run, nor at its beginning."""

    def broken(*arguments: object, **named: object) -> None:
        raise failure

    with reporting("wandb") as to:
        for name in ("numbers", "close"):
            monkeypatch.setattr(Kept, name, broken)
        to.measurement(HEADER, FOUND)
        assert not to
    assert f"wandb, which failed: {type(failure).__name__}" in caplog.text
    monkeypatch.setattr(sys.modules[names.ADAPTERS["wandb"]], "begin", broken)
    with pytest.raises(SdkerasError, match=f"cannot be reported to: {type(failure).__name__}"):
        open_reporter("wandb")


def test_ctrl_c_in_a_tracker_is_the_users(kept, monkeypatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Kept, "numbers", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), reporting("wandb") as to:
        to.measurement(HEADER, FOUND)
    assert kept["wandb"].ended == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_was_begun_fails_with_what_it_is_of(kept) -> None:
    with pytest.raises(KeyboardInterrupt), reporting("wandb"):
        raise KeyboardInterrupt
    assert kept["wandb"].ended == [True]


def test_a_tracker_that_cannot_begin_is_refused_and_those_before_it_are_closed(kept, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SdkerasError, match=r"tensorboard:.* cannot be reported to: \w+Error: .*file"):
        open_reporter(("wandb", f"tensorboard:{file}/below"))
    assert kept["wandb"].ended == [True]


def test_names_are_checked_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(names, "_is_installed", lambda name: True)
    assert check_trackers("wandb") == ("wandb",)
    assert check_trackers(["wandb", "tensorboard:a:b", "wandb"]) == ("wandb", "tensorboard:a:b")
    assert check_trackers(None) == check_trackers(()) == ()
    for wrong, words in {
        "tensorbord": r"no tracker 'tensorbord'; did you mean 'tensorboard'\? there are: ",
        "foo": "no tracker 'foo'; there are: tensorboard",
        "wandb:project": "only tensorboard:DIR",
        "tensorboard:": "only tensorboard:DIR",
        "tensorboard:gs://bucket/run": "gs://bucket/run is a URL",
        "mlflow:http://localhost:5000": "MLFLOW_TRACKING_URI",
        3: "must be names of trackers",
        (None,): "must be names of trackers",
    }.items():
        with pytest.raises(SdkerasError, match=words):
            check_trackers(wrong)
    monkeypatch.undo()
    # A folder of that name where Python looks, as wandb makes one, is no library.
    monkeypatch.setitem(names.ADAPTERS, "sdkeras_absent", "")
    (tmp_path / "sdkeras_absent").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SdkerasError, match=r"pip install 'sdkeras\[sdkeras_absent\]'"):
        check_trackers("sdkeras_absent")


def test_a_histogram_keeps_the_mass_even_of_one_node() -> None:
    masses, edges = histogram(SPECTRUM)
    check_spectrum(edges, masses)
    masses, edges = histogram(SpectrumSummary(np.array([3.0]), np.array([7.0])))
    assert masses.sum() == 7.0
    assert edges[0] < 3.0 < edges[-1]


# What the trackers have


def report_everything(to: reporter.Reporter) -> None:
    to.measurement(HEADER, FOUND, SPECTRUM)
    to.measurement(HEADER, LATER)
    to.page("track", RunLog(HEADER, (FOUND, LATER)))


def test_tensorboard_reads_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", type(sys)("notf"))  # it reads without TensorFlow
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata
    from tensorboard.util.tensor_util import make_ndarray

    with reporting("tensorboard", tmp_path / "new") as to:
        report_everything(to)
        reading = EventAccumulator(str(tmp_path / "new")).Reload()  # while it is written
        assert len(reading.Tensors("sdkeras/track")) == 1  # the last event
    reading = EventAccumulator(str(tmp_path / "new"), size_guidance={"tensors": 0}).Reload()
    for key, value in KEYS.items():
        events = reading.Tensors(f"sdkeras/{key}")
        assert [event.step for event in events] == [10, 20]
        assert make_ndarray(events[0].tensor_proto).item() == pytest.approx(value, rel=2**-23)
    (event,) = reading.Tensors("sdkeras/spectrum")
    bins = make_ndarray(event.tensor_proto)
    assert event.step == 10
    assert np.array_equal(bins[1:, 0], bins[:-1, 1])
    check_spectrum([*bins[:, 0], bins[-1, 1]], bins[:, 2])
    plugins = {name: set(reading.PluginTagToContent(name)) for name in ("scalars", "histograms", "text", "hparams")}
    assert plugins["histograms"] == {"sdkeras/spectrum"}
    assert plugins["scalars"] >= {f"sdkeras/{key}" for key in KEYS}
    assert plugins["text"] == {"sdkeras/track"}
    (event,) = reading.Tensors("sdkeras/track")
    assert b"Below the edge of stability at step 20" in make_ndarray(event.tensor_proto).item()
    content = reading.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(content).hparams
    assert settings["optimizer"].string_value == "SGD"
    assert {name: settings[name].number_value for name in SETTINGS if name != "optimizer"} == {
        name: value for name, value in SETTINGS.items() if name != "optimizer"
    }


def test_tensorboard_has_a_new_folder_of_logs_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with reporting("tensorboard"):
        pass
    with reporting("tensorboard:here", tmp_path / "elsewhere"):
        pass
    assert [path.parts[-3:-1][0] for path in tmp_path.glob("logs/sdkeras-*/events.*")] == ["logs"]
    assert len([*tmp_path.glob("here/events.*")]) == 1


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No library finds a network, a login, or the settings of this machine."""
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DIR": tmp_path,
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        monkeypatch.setenv(name, str(value))
    for name in ("WANDB_PROJECT", "WANDB_RUN_ID", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it reads its environment once


def records_of_wandb(file: Path) -> list:
    """The records in a run's file: LevelDB's log of blocks, whose records are wandb's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, records = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # what is left of a block and holds no header
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or last
            records.append(Record.FromString(whole))
            whole = b""
    return records


def rows_of_wandb(folder: Path) -> tuple[list[dict], dict, str]:
    """History, configuration and project of the only run in a folder."""
    sys.modules["wandb"].teardown()  # its process of its own ends, and has written all then
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    records = records_of_wandb(file)
    rows = []
    for record in (record for record in records if record.HasField("history")):
        rows.append({})
        for item in record.history.item:  # of a nested value each part is an item
            *above, name = item.nested_key or [item.key]
            row = rows[-1].setdefault(above[0], {}) if above else rows[-1]
            row[name] = json.loads(item.value_json)
    config = [item for record in records for item in (*record.config.update, *record.run.config.update)]
    project = next(record.run.project for record in records if record.HasField("run"))
    return rows, {item.key or item.nested_key[0]: json.loads(item.value_json) for item in config}, project


@pytest.mark.slow
def test_wandb_has_it_offline(offline: Path) -> None:
    import wandb

    with reporting("wandb") as to:
        report_everything(to)
        assert wandb.run is not None
    assert wandb.run is None  # it was begun here
    rows, config, project = rows_of_wandb(offline)
    rows = [row for row in rows if "sdkeras/sharpness" in row]
    assert [row["sdkeras/step"] for row in rows] == [10, 20]
    assert rows[0].items() >= {f"sdkeras/{key}": value for key, value in KEYS.items()}.items()
    assert rows[0]["sdkeras/spectrum"]["_type"] == "histogram"
    check_spectrum(rows[0]["sdkeras/spectrum"]["bins"], rows[0]["sdkeras/spectrum"]["values"])
    assert config["sdkeras"] == SETTINGS
    assert project == "sdkeras"
    (page,) = offline.glob("wandb/offline-run-*/files/media/html/sdkeras/track*.html")
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_wandb_goes_on_with_the_run_that_is_active(offline: Path) -> None:
    import wandb

    with wandb.init(project="mine") as run:
        run.log({"loss": 1.0})
        with reporting("wandb") as to:
            to.measurement(HEADER, FOUND)
        run.log({"loss": 0.5})
    rows, _, project = rows_of_wandb(offline)
    assert [row["loss"] for row in rows if "loss" in row] == [1.0, 0.5]
    assert [row["sdkeras/sharpness"] for row in rows if "sdkeras/sharpness" in row] == [12.0]
    assert project == "mine"


@pytest.mark.slow
def test_mlflow_has_it_in_a_local_store(offline: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri((offline / "mlruns").as_uri())
    with reporting("mlflow") as to:
        report_everything(to)
        run_id = mlflow.active_run().info.run_id
    assert mlflow.active_run() is None  # it was begun here
    client = mlflow.MlflowClient()
    for key, value in KEYS.items():
        history = client.get_metric_history(run_id, f"sdkeras/{key.replace('/', '.')}")
        assert [each.step for each in history] == [10, 20]
        assert history[0].value == value
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {f"sdkeras/{name}": str(value) for name, value in SETTINGS.items()}
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/sdkeras/track.html").startswith("<!doctype html>")
    table = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/sdkeras/spectrum/step-00000010.csv").splitlines()
    assert table[0] == "eigenvalue,mass"
    nodes, weights = zip(*(map(float, line.split(",")) for line in table[1:]), strict=True)
    assert nodes == tuple(SPECTRUM.nodes)
    assert weights == tuple(SPECTRUM.weights)
    # In the run that is active, which keeps the settings of its first analysis.
    with mlflow.start_run() as active:
        for rate in (0.1, 0.2):
            with reporting("mlflow") as to:
                to.analysis(attrs.evolve(RUN, optimizer=attrs.evolve(RUN.optimizer, learning_rate=rate)))
        assert mlflow.active_run() is not None
    run = client.get_run(active.info.run_id)
    assert run.data.params["sdkeras/learning_rate"] == "0.1"
    assert run.data.metrics["sdkeras/optimizer.learning_rate"] == 0.2
    paths = {f"sdkeras/{path.replace('/', '.')}": value for path, value in PATHS.items()}
    assert run.data.metrics.items() >= paths.items()


def test_numbers_of_nothing_measured_are_finite() -> None:
    assert all(math.isfinite(value) for value in numbers_of(sample_runs.EMPTY).values())
