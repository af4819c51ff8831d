"""Arguments that a Python caller may get wrong: one SdkerasError each, before any work."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import sdkeras
from sdkeras.callbacks import SharpnessDimension
from sdkeras.errors import ArgumentTypeError, DataError, ModelError, SdkerasError
from sdkeras.files import class_weights
from sdkeras.results.log import FILE_NAME, claim
from sdkeras.runs.options import Options
from sdkeras.training_step.settings import read_settings
from small_nets import X, Y, net


def callback(**arguments: Any) -> SharpnessDimension:
    return SharpnessDimension((X, Y), **arguments)


@pytest.mark.parametrize(
    ("takes", "arguments"),
    [
        (Options, {"samples": 1.5}),
        (Options, {"samples": True}),
        (Options, {"max_hvps": "many"}),
        (Options, {"time_limit": "a"}),
        (Options, {"memory_gb": 1e300}),
        (Options, {"memory_gb": math.nan}),
        (Options, {"tolerance": "small"}),
        (Options, {"seed": "a"}),
        (Options, {"seed": -1}),
        (Options, {"mode": 1}),
        (Options, {"dtype": "float16"}),
        (Options, {"product_mode": []}),
        (Options, {"bound_inputs": {"delta": "a"}}),
        (Options, {"bound_inputs": [1]}),
        (Options, {"loss": []}),
        (Options, {"loss": {}}),
        (Options, {"loss": ""}),
        (Options, {"log": 1}),
        (Options, {"log": ""}),
        (callback, {"log_dir": ""}),
        (callback, {"report": ""}),
        (callback, {"preset": "slow"}),
        (callback, {"every": 1.5}),
        (callback, {"num_measurements": True}),
        (callback, {"max_overhead": "a"}),
        (callback, {"measures": None}),
        (callback, {"seed": "a"}),
        (callback, {"samples": 1.5}),
        (callback, {"class_weight": {0: 1e300}}),
        (callback, {"bound_inputs": {"delta": "a"}}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else value.__name__,
)
def test_arguments_of_the_wrong_kind(takes: Callable[..., object], arguments: dict[str, Any]) -> None:
    with pytest.raises(SdkerasError) as caught:
        takes(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("SharpnessDimension", callback),
        ("EmpiricalLoss", lambda **options: sdkeras.EmpiricalLoss(net(), (X, Y), **options)),
        ("analyze", lambda **options: sdkeras.analyze(net(), (X, Y), **options)),
        ("track", lambda **options: sdkeras.track([], (X, Y), log_dir="run", **options)),
    ],
)
def test_options_that_do_not_exist(name: str, call: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\(\) has no option 'bach_size'; did you mean 'batch_size'\?$"):
        call(bach_size=4)
    with pytest.raises(TypeError, match=rf"^{name}\(\) has no option 'zzzz'\.$"):
        call(zzzz=4)


def test_the_constructors_that_check_them_keep_their_signatures() -> None:
    assert str(inspect.signature(SharpnessDimension)).startswith("(data: 'Data', every: 'str | int' = 'epoch', ")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'data'"):
        SharpnessDimension()  # type: ignore[call-arg]


RUN = sdkeras.Analysis.load(Path(__file__).parents[1] / "data" / "v0.1.0" / "run.json")
LOSS = r"loss must be of type EmpiricalLoss, got (str|Sequential); sdkeras.EmpiricalLoss\(model, \(x, y\)\) makes one\."
RECORD = r"must be of type Analysis or LyapunovRun, got str; .*sdkeras.Analysis.load\('run.json'\) reads one;"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sdkeras.HessianOperator("x"), LOSS),  # type: ignore[arg-type]
        (lambda: sdkeras.GaussNewtonOperator(keras.Sequential()), LOSS),  # type: ignore[arg-type]
        (lambda: sdkeras.UpdateMap(keras.Sequential(), keras.optimizers.SGD()), LOSS),  # type: ignore[arg-type]
        (lambda: sdkeras.TrainingFlow("x"), "step must be of type UpdateMap, got str"),  # type: ignore[arg-type]
        (lambda: sdkeras.compare("a.json", RUN), f"a {RECORD}"),  # type: ignore[arg-type]
        (lambda: sdkeras.compare(RUN, "b.json"), f"b {RECORD}"),  # type: ignore[arg-type]
        (lambda: sdkeras.plot.exponents("run.json"), "run must be of type Analysis, got str"),  # type: ignore[arg-type]
        (lambda: sdkeras.plot.track(3), "log must be of type RunLog, got int"),  # type: ignore[arg-type]
        (lambda: sdkeras.plot.compare([RUN, 3]), r"runs\[1\] must be of type Analysis, got int"),  # type: ignore[list-item]
        (lambda: sdkeras.plot.exponents(RUN, [1]), "ax must be of type Axes, got list; .*subplots"),  # type: ignore[arg-type]
    ],
)
def test_records_and_operators_of_another_type(call: Callable[[], object], message: str) -> None:
    """One sentence, which says how to come by the right one."""
    with pytest.raises(ArgumentTypeError, match=f"^{message}") as caught:
        call()
    assert isinstance(caught.value, TypeError)
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_numpy_are_whole() -> None:
    callback(every=np.int64(2), num_measurements=np.int64(3))


def test_class_weights_that_leave_nothing_or_overflow() -> None:
    with pytest.raises(DataError, match="every class in the data the weight 0"):
        sdkeras.analyze(net(), (X, Y), batch_size=16, class_weight=dict.fromkeys(range(10), 0.0))
    with pytest.raises(SdkerasError, match="overflows float32"):
        class_weights.checked({0: 1e39})
    assert class_weights.checked({0: 0.0, 1: 1e10}) == {0: 0.0, 1: 1e10}


@pytest.mark.parametrize("num_steps", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_too_few_lanczos_steps_are_no_answer(num_steps: int) -> None:
    """Two steps have no coarser rule to compare with, and one sees the mean eigenvalue only."""
    settings = {"slq": {"num_steps": num_steps}}
    with pytest.raises(SdkerasError, match=f"slq.num_steps is {num_steps}; fewer than 3 steps"):
        sdkeras.analyze(net(), (X, Y), batch_size=16, settings=settings, tolerance=0.9)


@pytest.mark.parametrize("raises", [SystemExit, RuntimeError])
def test_a_loss_function_that_raises(raises: type[BaseException]) -> None:
    def ends(model: Any, batch: Any) -> Any:
        raise raises(0)

    with pytest.raises(ModelError):
        sdkeras.analyze(net(), (X, Y), batch_size=16, loss_fn=ends)


def test_a_log_that_is_none_is_not_appended_to(tmp_path: Path) -> None:
    place = tmp_path / FILE_NAME
    place.write_text('{"a": 1}\nxx\n')
    with pytest.raises(SdkerasError, match="does not begin with the header"):
        net().fit(X, Y, epochs=1, verbose=0, callbacks=[SharpnessDimension((X, Y), log_dir=tmp_path)])
    assert place.read_text() == '{"a": 1}\nxx\n'
    for text in ("", '{"schema_version": 1, "sdk'):  # empty, or cut in its first line
        place.write_text(text)
        claim(place).close()


def test_rates_of_optimizers_that_no_pattern_reaches_after_loading() -> None:
    """Keras names variables otherwise after loading than while fitting; the rates are several all the same."""
    optimizers = keras.optimizers
    parts = optimizers.OptimizerMap(optimizers.SGD(0.1), {"nowhere/.*": optimizers.Adam(0.01)})
    optimizer = optimizers.MultiOptimizer(parts)
    optimizer.build(net().trainable_variables)
    settings = read_settings(optimizer)
    assert settings is not None
    assert settings.learning_rate is None
    assert sorted(rate for _, rate in settings.rates) == pytest.approx([0.01, 0.1])


def test_numbers_beyond_all_bounds_are_compared(tmp_path: Path) -> None:
    import json

    run = Path(__file__).parents[1] / "data" / "v0.1.0" / "run.json"
    document = json.loads(run.read_text())
    document["layers"][0]["codimension"] = 1e308
    (tmp_path / "huge.json").write_text(json.dumps(document))
    assert str(sdkeras.compare(sdkeras.Analysis.load(tmp_path / "huge.json"), sdkeras.Analysis.load(run)))


@pytest.mark.parametrize("columns", ["0", "1", "99999999999999999999"])
def test_terminals_of_any_width(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdkeras_cli.output import console

    monkeypatch.setenv("COLUMNS", columns)
    assert 40 <= console().width <= 10_000


@pytest.fixture
def track(tmp_path: Path) -> Callable[..., Any]:
    """Measures the sharpness of one checkpoint, by a model compiled with a slow or a fast rate."""
    model = net()
    model.save_weights(tmp_path / "w.weights.h5")
    for name, rate in (("slow", 0.1), ("fast", 0.9)):
        model.compile(keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.save(tmp_path / f"{name}.keras")

    def tracked(out: str, model: str, **options: Any) -> Any:
        return sdkeras.track(
            [tmp_path / "w.weights.h5"],
            (X, Y),
            log_dir=tmp_path / out,
            model=tmp_path / f"{model}.keras",
            batch_size=16,
            measures=("sharpness",),
            **options,
        )

    return tracked


def test_resumed_checkpoints_know_their_model(track: Callable[..., Any]) -> None:
    """The same weights under another rate are not what the log holds."""
    first = track("a", "slow")
    assert track("a", "slow").measurements[0] == first.measurements[0]
    with pytest.raises(SdkerasError, match="choose another folder"):
        track("a", "fast")


@pytest.mark.slow
def test_resumed_checkpoints_know_their_loss_file(track: Callable[..., Any], tmp_path: Path) -> None:
    """Nor are they under another loss by the same name."""
    loss = tmp_path / "own_loss.py"
    code = "import keras\n\ndef f(model, batch):\n    return {} * keras.ops.mean(model(batch[0], training=True) ** 2)\n"
    loss.write_text(code.format(1))
    single = track("b", "slow", loss=f"{loss}:f").measurements[0].value("sharpness")
    loss.write_text(code.format(10))
    with pytest.raises(SdkerasError, match="choose another folder"):
        track("b", "slow", loss=f"{loss}:f")
    tenfold = track("c", "slow", loss=f"{loss}:f").measurements[0].value("sharpness")
    assert tenfold == pytest.approx(10 * single, rel=1e-4)
