"""Data as people have them: no targets, text, batches of different lengths, unusual numbers, larger than memory."""

import re
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import sdkeras
from oracles import finite_difference_hessian
from sdkeras.errors import DataError, ModelError, SdkerasError
from sdkeras.files.dataset import load_data
from sdkeras.operators import minibatches

layers = keras.layers
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(40, 4)).astype("float32")
Y = DRAW.integers(0, 3, 40)
SCCE = keras.losses.SparseCategoricalCrossentropy


def dense_hessian(loss: Any) -> np.ndarray:
    return np.asarray(sdkeras.HessianOperator(loss).matmat(np.eye(loss.size)))


def net(outputs: int = 3) -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="tanh"), layers.Dense(outputs)])
    model.compile(keras.optimizers.SGD(0.1), SCCE(from_logits=True))
    return model


@pytest.fixture(scope="module")
def trained() -> Any:
    return net()


class Encoder(keras.Model):
    """An autoencoder that adds its own loss."""

    def __init__(self, adds: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.adds = adds
        self.encode, self.decode = layers.Dense(2, activation="tanh"), layers.Dense(4)

    def call(self, x: Any) -> Any:
        output = self.decode(self.encode(x))
        if self.adds:
            self.add_loss(keras.ops.mean((output - x) ** 2))
        return output

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "adds": self.adds}


class OwnLoss(Encoder):
    """An autoencoder with a loss of its own."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean((y_pred - x) ** 2)


# Without targets


@pytest.mark.parametrize("kind", [Encoder, pytest.param(OwnLoss, marks=pytest.mark.slow)])
def test_data_without_targets(kind: type) -> None:
    """The loss and the Hessian are those of the reconstruction error written out, in each of the forms."""
    keras.utils.set_random_seed(0)
    model = kind(adds=kind is Encoder)
    model(X[:2])
    model.compile("sgd")
    kernels = [np.asarray(variable, np.float64) for variable in model.trainable_variables]

    def error(flat: np.ndarray) -> float:
        parts, place = [], 0
        for kernel in kernels:
            parts.append(flat[place : place + kernel.size].reshape(kernel.shape))
            place += kernel.size
        return float(np.mean((np.tanh(X @ parts[0] + parts[1]) @ parts[2] + parts[3] - X) ** 2))

    point = np.concatenate([kernel.ravel() for kernel in kernels])
    losses = [
        sdkeras.EmpiricalLoss(model, data, 8, dtype="float64")
        for data in (X, (X,), (X, None), tf.data.Dataset.from_tensor_slices(X).batch(8))
    ]
    for loss in losses:
        assert loss.value() == pytest.approx(error(point), rel=1e-6)  # float32 weights and data
    direction = DRAW.normal(size=len(point))
    curvature = (error(point + 1e-3 * direction) - 2 * error(point) + error(point - 1e-3 * direction)) / 1e-6
    product = sdkeras.HessianOperator(losses[0]).matvec(direction)
    assert direction @ product == pytest.approx(curvature, rel=1e-4)
    run = sdkeras.analyze(model, X, batch_size=8, max_hvps=100)
    assert run.data.num_samples == 40


@pytest.mark.parametrize("data", [X, (X,), tf.data.Dataset.from_tensor_slices(X).batch(8)])
def test_targets_that_the_loss_needs_are_asked_for(trained: Any, data: Any) -> None:
    with pytest.raises(DataError, match=r"no targets y.*give them too"):
        sdkeras.analyze(trained, data, batch_size=8)


# Text


@pytest.mark.parametrize(
    "kind", ["U", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("S", "object", "tensor", "dataset"))]
)
def test_text_for_a_model_that_encodes_it(kind: str) -> None:
    text = np.array(["good film", "bad film", "good good", "bad plot", "fine plot", "awful film"] * 2)
    labels = np.array([1, 0, 1, 0, 1, 0] * 2)
    encode = layers.TextVectorization(max_tokens=20, output_sequence_length=4)
    encode.adapt(text)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((), dtype="string")
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(20, 2)(encode(inputs)))
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    model.compile("sgd", SCCE(from_logits=True))
    forms: dict[str, Any] = {
        "U": text,
        "S": text.astype("S"),
        "object": text.astype(object),
        "tensor": tf.constant(text),
    }
    if kind == "dataset":
        data: Any = tf.data.Dataset.from_tensor_slices((text, labels)).batch(6)
    else:
        data = (forms[kind], labels)
    loss = sdkeras.EmpiricalLoss(model, data, 6)
    assert loss.value() == pytest.approx(float(model.evaluate(tf.constant(text), labels, verbose=0)), rel=1e-5)
    check = sdkeras.HessianOperator(loss).verification
    assert check.finite_difference_dtype == "float64"  # the clone knows the vocabulary
    assert check.passed
    if kind == "U":  # one vocabulary entry more in one sample is another data set
        other = text.copy()
        other[0] = "good plot"
        assert sdkeras.EmpiricalLoss(model, (other, labels), 6).source.digest() != loss.source.digest()


# Batches of different lengths


def bucketed() -> tuple[Any, list[np.ndarray], list[np.ndarray]]:
    draw = np.random.default_rng(1)
    tokens = [draw.integers(1, 9, size=(size, length)) for size, length in ((6, 3), (6, 5), (6, 3), (4, 7))]
    labels = [draw.integers(0, 2, len(part)) for part in tokens]
    signature = (tf.TensorSpec((None, None), tf.int64), tf.TensorSpec((None,), tf.int64))
    return (
        tf.data.Dataset.from_generator(lambda: zip(tokens, labels, strict=True), output_signature=signature),
        tokens,
        labels,
    )


def test_batches_of_different_lengths_are_kept_as_they_are(tmp_path: Path) -> None:
    dataset, tokens, labels = bucketed()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None,), dtype="int64")
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(9, 2)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    model.compile(keras.optimizers.SGD(0.5), SCCE(from_logits=True))
    loss = sdkeras.EmpiricalLoss(model, dataset, dtype="float64")
    by_hand = [float(SCCE(from_logits=True)(y, model(x))) for x, y in zip(tokens, labels, strict=True)]
    assert loss.value() == pytest.approx(np.average(by_hand, weights=[len(part) for part in labels]), rel=1e-6)
    expected = finite_difference_hessian(loss)
    assert np.max(np.abs(dense_hessian(loss) - expected)) < 1e-6 * np.max(np.abs(expected))
    assert loss.source.minibatches_per_epoch == 3  # the ragged one is not full
    assert {part.shape[1] for part in (loss.source.minibatch(k, 0)[0] for k in range(3))} == {3, 5}
    run = sdkeras.analyze(model, dataset, max_hvps=150)
    assert run.data.batch_size == 6
    with pytest.raises(DataError, match="cannot be re-batched to 4"):
        sdkeras.analyze(model, dataset, batch_size=4)
    model.save(tmp_path / "m.keras")
    log = sdkeras.track(
        [tmp_path / "m.keras"], dataset, test_data=dataset, log_dir=tmp_path / "log", measures=("sharpness",)
    )
    assert log.measurements[0].metrics["loss"] == pytest.approx(loss.value(), rel=1e-5)
    assert log.measurements[0].metrics["val_loss"] == log.measurements[0].metrics["loss"]


@pytest.mark.parametrize("data", [tf.ragged.constant([[1.0, 2.0], [3.0]]), tf.sparse.from_dense([[1.0, 0.0]])])
def test_ragged_and_sparse_tensors_are_refused(trained: Any, data: Any) -> None:
    with pytest.raises(DataError, match="make it dense"):
        sdkeras.analyze(trained, (data, np.zeros(2, int)))


# Kinds of numbers


@pytest.mark.parametrize(
    "dtype",
    [
        *("float16", "int8"),
        *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float64", "uint8", "int64", "bool")),
    ],
)
def test_numbers_of_other_kinds(trained: Any, dtype: str) -> None:
    """They are the numbers that they are in float32."""
    values = (3 * X).astype(dtype)
    loss = sdkeras.EmpiricalLoss(trained, (values, Y), 8)
    assert loss.value() == pytest.approx(float(trained.evaluate(values.astype("float32"), Y, verbose=0)), rel=1e-5)
    assert sdkeras.HessianOperator(loss).verification.passed


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "longdouble", "object"])
@pytest.mark.parametrize("form", ["arrays", "callable"])
def test_numbers_that_cannot_be_analysed(trained: Any, dtype: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = X.astype("int64").astype(dtype) if "date" in dtype else X.astype(dtype)

    def read() -> None:
        if form == "arrays":
            sdkeras.analyze(trained, (values, Y), batch_size=8)
        else:
            load_data("numbers_of_a_test:data")

    monkeypatch.setitem(sys.modules, "numbers_of_a_test", types.SimpleNamespace(data=lambda: (values, Y)))
    with pytest.raises(DataError, match=re.escape(f"dtype {np.dtype(dtype)}")):
        read()


def test_the_order_in_memory_makes_no_difference(trained: Any) -> None:
    losses = [
        sdkeras.EmpiricalLoss(trained, (x, Y), 8) for x in (X, np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2])
    ]
    values = [loss.value() for loss in losses]
    assert values[0] == values[1] == values[2]
    assert len({loss.source.digest() for loss in losses}) == 1


def test_one_class_one_parameter_and_none() -> None:
    run = sdkeras.analyze(net(outputs=1), (X, np.zeros(40, int)), batch_size=8, max_hvps=100)
    assert run.hessian.largest is not None
    assert run.hessian.largest.value == pytest.approx(0.0, abs=1e-6)
    single = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    single.compile(keras.optimizers.SGD(0.125), "mse")
    run = sdkeras.analyze(single, (X[:, :1], X[:, :1]), batch_size=40, runs=3)
    alpha = 2 * float(np.mean(X[:, 0].astype(np.float64) ** 2))
    assert run.hessian.largest is not None
    assert run.hessian.largest.value == pytest.approx(alpha, rel=1e-6)
    assert run.sharpness_dimension is not None
    assert run.sharpness_dimension.value == 0.0  # |1 - alpha/8| < 1
    frozen = net()
    frozen.trainable = False
    frozen.compile("sgd", "mse")
    with pytest.raises(ModelError, match="no trainable variables"):
        sdkeras.analyze(frozen, (X, X[:, :3]))


def test_a_hundred_thousand_classes() -> None:
    """Labels stay labels: one-hot targets would be 40 x 1e5."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(100_000)])
    model.compile("sgd", SCCE(from_logits=True))
    loss = sdkeras.EmpiricalLoss(model, (X, DRAW.integers(0, 100_000, 40)), 8)
    assert sum(array.nbytes for array in loss.source.arrays) < 10_000
    assert loss.value() == pytest.approx(np.log(1e5), rel=0.1)
    with pytest.raises(DataError, match="100000 classes"):
        sdkeras.analyze(model, (X, np.full(40, 100_000)), batch_size=8)


@pytest.mark.parametrize(("size", "fits"), [(40, True), (41, False), (None, True)])
def test_batch_sizes_at_the_number_of_samples(trained: Any, size: int | None, fits: bool) -> None:
    if fits:
        few = 9 if size is None else 40
        source = minibatches.as_source((X[:few], Y[:few]), batch_size=size, default_batch_size=32, limit=None)
        assert source.batch_size == few
        return
    with pytest.raises(DataError, match="batch size 41 is larger than the data, which have 40 samples"):
        sdkeras.analyze(trained, (X, Y), batch_size=size)


# Learning rates out of the world


@pytest.mark.parametrize("rate", [1e300, 1e-30, pytest.param(1e-300, marks=pytest.mark.slow)])
def test_rates_that_no_training_has(trained: Any, rate: float) -> None:
    """A huge one expands everything; a tiny one moves nothing that float64 resolves, and that is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run = sdkeras.analyze(trained, (X, Y), batch_size=8, learning_rate=rate, runs=3)
        assert str(run)
    estimate = run.sharpness_dimension
    assert estimate is not None
    assert estimate.interval is not None
    codes = {note.code for note in run.warnings}
    if rate > 1:
        assert estimate.interval == pytest.approx((27.0, 27.0), rel=1e-14)
    else:
        assert estimate.interval == estimate.definition_interval == (0.0, 27.0)
        assert "unresolved-rate" in codes


@pytest.mark.slow
def test_a_usual_rate_is_resolved(trained: Any) -> None:
    usual = sdkeras.analyze(trained, (X, Y), batch_size=8, learning_rate=0.1, runs=3)
    assert "unresolved-rate" not in {note.code for note in usual.warnings}


# NaN in the last batch, data without an end


class Batches(keras.utils.PyDataset):
    def __init__(self, count: int | None, x: np.ndarray = X) -> None:
        super().__init__()
        self.count, self.x = count, x

    @property
    def num_batches(self) -> int | None:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(8 * (index % 5), 8 * (index % 5) + 8)
        return self.x[part], Y[part]


def test_nan_in_the_last_batch_is_found(trained: Any, tmp_path: Path) -> None:
    bad = X.copy()
    bad[-1, -1] = np.nan
    for data in (tf.data.Dataset.from_tensor_slices((bad, Y)).batch(8), Batches(5, bad)):
        with pytest.raises(DataError, match=r"batch 4 of the dataset: x is nan at index \[7, "):
            sdkeras.analyze(trained, data)
    np.save(tmp_path / "x.npy", bad)
    for array in (bad, np.load(tmp_path / "x.npy", mmap_mode="r")):
        with pytest.raises(DataError, match=r"x is nan at index \[39, "):
            sdkeras.analyze(trained, (array, Y))


def test_data_without_an_end_are_read_as_far_as_asked(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).repeat()
    for data in (repeated, Batches(None)):
        source = minibatches.as_source(data, batch_size=None, default_batch_size=None, limit=24)
        assert np.array_equal(source.arrays[0], X[:24])
        with pytest.raises(DataError, match="no end; limit it with"):
            sdkeras.lyapunov(trained, data)
    # A Python generator without an end does not know that it has none.
    signature = (tf.TensorSpec((None, 4)), tf.TensorSpec((None,), tf.int64))
    endless = tf.data.Dataset.from_generator(lambda: iter(lambda: (X, Y), None), output_signature=signature)
    monkeypatch.setattr(minibatches, "_LONGEST", 400)
    with pytest.raises(DataError, match="has not ended after 440 samples"):
        sdkeras.analyze(trained, endless)
    with pytest.raises(SdkerasError, match="got generator"):
        sdkeras.analyze(trained, ((X, Y) for _ in range(2)))


# Larger than the memory

_DRY_RUN = """
import resource, sys
import numpy as np
import tensorflow, keras
from sdkeras.files import dataset
from sdkeras.operators import minibatches
keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])(np.zeros((2, 4), "float32"))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
size = int(sys.argv[2])
# The mapping itself counts; beside it a sixth of the file: a byte for each of its numbers would be a quarter.
resource.setrlimit(resource.RLIMIT_AS, (used + size + size // 6, used + size + size // 6))
data = dataset.load_data(sys.argv[1])
source = minibatches.as_source(data, batch_size=32, default_batch_size=None, limit=None)
print(source.num_samples, source.digest(), source.minibatch(0, 0)[0].sum(), len(source.epoch(64, 0)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' /proc")
def test_a_mapped_file_larger_than_the_memory_allowed(tmp_path: Path) -> None:
    """Checked and hashed in constant memory: 1.2 GB, of which the file system holds nothing."""
    rows = 5_000_000
    header = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype="float32", shape=(rows, 60))
    del header
    np.save(tmp_path / "y.npy", np.zeros(rows, np.int8))
    answer = subprocess.run(
        [sys.executable, "-c", _DRY_RUN, f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}", str(rows * 240)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert answer.stdout.split()[0] == str(rows)
