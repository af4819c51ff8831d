"""What the commands refuse: one message, exit status 2, and every file as it was."""

import shlex
from pathlib import Path

import keras
import numpy as np
import pytest

from processes import WITHOUT_TENSORFLOW, python
from sample_log import HEADER
from sdkeras.results.log import append

layers = keras.layers


def saved(path: Path, optimizer: object, *hidden: object, size: int = 3, classes: int = 2) -> keras.Model:
    """A small net, trained for a step if it has an optimizer."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((size,)), *hidden, layers.Dense(classes)])
    if optimizer is not None:
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(np.zeros((4, size), "float32"), np.zeros(4, int), verbose=0)
    model.save(path)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, trajectories, and things that are none of them."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((70, 6)).astype("float32"), generator.integers(0, 3, 70)
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "nan.npz", x=np.where(x > 2, np.nan, x), y=y)
    np.savez(folder / "shape.npz", x=x[:, :5], y=y)
    np.savez(folder / "objects.npz", x=np.array([{}, {}], dtype=object), y=y[:2])
    np.savez(folder / "x.npz", x=x)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    saved(folder / "model.keras", keras.optimizers.SGD(0.125), layers.Dense(5, "tanh"), size=6, classes=3)
    saved(folder / "bare.keras", None, size=6, classes=3)
    np.savez(folder / "small.npz", x=x[:40, :3], y=y[:40] % 2)
    saved(folder / "small.keras", keras.optimizers.SGD(0.5, momentum=0.5), layers.Dense(3, "tanh"))
    wild = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    wild.compile(keras.optimizers.SGD(1e6), "mse")
    wild.save(folder / "wild.keras")
    np.savez(folder / "wild.npz", x=x[:, :3], y=x[:, :1])
    for name in ("junk.keras", "junk.weights.h5"):
        (folder / name).write_bytes(b"PK")
    (folder / "mine.py").write_text("")
    append(folder / "other.jsonl", HEADER)
    (folder / "empty.jsonl").write_text("")
    np.savez(folder / "recorded.npz", trajectory=generator.random((60, 26)))
    np.save(folder / "vector.npy", np.ones(5))
    np.savez(folder / "vector.npz", trajectory=np.ones(5))
    np.save(folder / "whole.npy", np.ones((5, 2), int))
    np.save(folder / "boxes.npy", np.array([[None, 1.0]] * 3), allow_pickle=True)
    np.savez(folder / "boxes.npz", np.array([[None, 1.0]] * 3))
    np.save(folder / "short.npy", np.ones((1, 4)))
    np.save(folder / "nan.npy", np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1.0))
    np.savez(folder / "both.npz", trajectory=np.ones((5, 2)), weights=np.ones((5, 2)))
    for kind in ("npy", "npz"):
        (folder / f"cut.{kind}").write_bytes((folder / f"vector.{kind}").read_bytes()[:130])
    return folder


ANALYZE = "analyze model.keras --data data.npz --json new.json"
CRITICAL = "critical small.keras --data small.npz"
LANDSCAPE = "landscape small.keras --data small.npz"
LYAPUNOV = "lyapunov small.keras --data small.npz"
TRACK = "track junk.keras --data data.npz"
TRAJECTORY = "study trajectory"
REFUSED = [
    ("analyse model.keras", "No such command 'analyse'. Did you mean 'analyze'?"),
    ("nothing", "No such command 'nothing'. The commands are analyze, "),
    ("study correlat run", "Did you mean 'correlate'? The commands are run, "),
    ("plugins chekc slq", "Did you mean 'check'?"),
    ("analyze model.keras --learnig-rate 1", "Did you mean '--learning-rate'?"),
    (f"{ANALYZE} --open", "--open opens the report page, and none is written; give --html FILE or --out DIR"),
    (f"{ANALYZE} --out ''", "the name of the folder (--out) is empty"),
    (f"{ANALYZE} --out data.npz", "the folder data.npz cannot be made: File exists"),
    (f"{ANALYZE} --out . --html ./report.html", "a file of its own"),
    ("analyze missing.keras --data data.npz", "no file"),
    ("analyze junk.keras --data data.npz", "junk.keras"),
    ("analyze model.keras --data missing.npz", "missing.npz"),
    ("analyze model.keras --data nan.npz", "not finite"),
    ("analyze model.keras --data shape.npz", "shape"),
    ("analyze model.keras --data objects.npz", "unpickle"),
    ("analyze model.keras --data missing.npy,y.npy", "missing.npy"),
    ("analyze model.keras", "--data"),
    ("analyze bare.keras --data data.npz", "--loss"),
    (f"{ANALYZE} --batch-size 71", "70 samples"),
    (f"{ANALYZE} --learning-rate 0", "--learning-rate"),
    (f"{ANALYZE} --learning-rate -1", "--learning-rate"),
    (f"{ANALYZE} --learning-rate nan", "positive and finite number"),
    (f"{ANALYZE} --loss no_such_loss", "no_such_loss"),
    (f"{ANALYZE} --log missing", "give a folder with a sharpness.jsonl, or such a file"),
    (f"{ANALYZE} --log data.npz", "does not begin with the header of a log"),
    (f"{ANALYZE} --log empty.jsonl", "nothing has been measured yet"),
    (f"{ANALYZE} --log other.jsonl", "training (--log DIR), or leave it out"),
    ("analyze model.keras --data data.npz --log other.jsonl --json other.jsonl", "overwritten"),
    (f"{ANALYZE} --params (", "regular expression"),
    (f"{ANALYZE} --tolerance 2", "tolerance"),
    (f"{ANALYZE} --jit yes", "'auto', 'on', 'off'"),
    (f"{ANALYZE} --tolerance nan", "not a finite number"),
    (f"{ANALYZE} --memory inf", "not a finite number"),
    (f"{ANALYZE} --exact --memory 1e-6", "GB"),
    (f"{ANALYZE} --custom-objects no.py", "no.py"),
    (f"{ANALYZE} --estimator sql", "did you mean 'slq'"),
    (
        f"{ANALYZE} --estimator golub-kahan",
        "takes spectra of a Hessian: exact, sd-kde, sd-ps, sd-slq, slq",
    ),
    (f"{ANALYZE} --set slq", "NAME.FIELD=VALUE"),
    (f"{ANALYZE} --set sql.num_steps=3", "did you mean 'slq'"),
    (f"{ANALYZE} --set slq.steps=3", "num_steps"),
    (f"{ANALYZE} --set slq.num_steps=many", "not a value of type int"),
    (f"{ANALYZE} --set slq.num_steps=0", "fields are"),
    (f"{ANALYZE} --dry-run --set slq.num_steps=-3", "must be >= 1"),
    (f"{ANALYZE} --dry-run --html no/such/page.html", "does not exist"),
    (f"{ANALYZE} --html ./new.json", "a file of its own"),
    (f"{ANALYZE} --html model.keras", "overwritten"),
    (f"{ANALYZE} --custom-objects mine.py --html mine.py", "overwritten"),
    ("analyze model.keras --data data.npz --json no/such/run.json", "does not exist"),
    ("analyze model.keras --data data.npz --json ''", "empty"),
    ("analyze model.keras --data data.npz --json .", "is a folder"),
    (f"analyze model.keras --data data.npz --json {'a' * 256}", "cannot be written"),
    ("analyze model.keras --data data.npz --json ./model.keras", "overwritten"),
    ("analyze model.keras --data data.npz --json data.npz", "overwritten"),
    ("analyze model.keras --data x.npy,y.npy --json y.npy", "overwritten"),
    (f"{ANALYZE} --map full --params kernel", "of all variables and in training mode; leave out params"),
    (f"{ANALYZE} --operator kfac", "'hessian', 'ggn', 'fisher'"),
    (f"{ANALYZE} --operator ggn --map full", "leave out one of them (--operator, --map full)"),
    (
        "analyze wild.keras --data wild.npz --loss huber --operator fisher",
        "take its Gauss-Newton matrix (--operator ggn)",
    ),
    (f"{ANALYZE} --map full --per-layer", "do not split by layers; leave out one of them (--per-layer, --map full)"),
    (f"{ANALYZE} --map full --estimator slq", "'slq' is one of spectra of a Hessian"),
    (f"{ANALYZE} --map full --set golub-kahan.steps=3", "'golub-kahan' has no field 'steps'"),
    (f"{ANALYZE} --map full --set slq.num_steps=3", "'slq', which is not used here"),
    (f"{ANALYZE} --snapshots 3", "--every M"),
    (f"{ANALYZE} --snapshots 1 --every 5", "not in the range x>=2"),
    (f"{ANALYZE} --snapshots 3 --every 5 --mode inference", "leave out params and mode"),
    ("lyapunov none.keras --data small.npz", "no file none.keras"),
    ("lyapunov small.keras --data none.npz", "none.npz"),
    ("lyapunov small.keras --data data.npz", "shape"),
    ("lyapunov small.keras", "--data"),
    ("lyapunov bare.keras --data data.npz", "--loss"),
    ("lyapunov bare.keras --data data.npz --loss sparse_categorical_crossentropy", "--learning-rate"),
    (f"{LYAPUNOV} --batch-size 1000", "larger than the data"),
    (f"{LYAPUNOV} --steps 0", "--steps"),
    (f"{LYAPUNOV} --num-exponents 0", "--num-exponents"),
    (f"{LYAPUNOV} --num-exponents 41", "exceeds the size of the state, 40"),
    (f"{LYAPUNOV} --dry-run --num-exponents 41", "exceeds the size of the state, 40"),
    (f"{LYAPUNOV} --learning-rate nan", "positive and finite number"),
    (f"{LYAPUNOV} --windows 3", "take 2 or 4 in its place, or 999 or 1,002 steps (--steps), which"),
    (f"{LYAPUNOV} --windows two", "'two' is not a valid integer"),
    (f"{LYAPUNOV} --windows 1,,2", "'' is not a valid integer"),
    (f"{LYAPUNOV} --windows 2 --checkpoint run.npz", "holds no Jacobians"),
    (f"{LYAPUNOV} --windows 2 --memory 0.001", "of a state of 40 dimensions need"),
    (
        f"{LYAPUNOV} --dry-run --windows 2 --memory 0.001",
        "at most 140 steps fit (--steps); or allow",
    ),
    (f"{LYAPUNOV} --estimator slq", "no lyapunov estimator 'slq'"),
    (f"{LYAPUNOV} --set slq.num_steps=3", "no installed estimator 'slq'"),
    (f"{LYAPUNOV} --set tolerance=3", "for example lyapunov-qr.tolerance=0.001"),
    (f"{LYAPUNOV} --set lyapunov-qr.transient=3", "is an option of the run; give it as such (--num-exponents, --steps"),
    (f"{LYAPUNOV} --set lyapunov-qr.tolerance=x", "is not a value of type"),
    (f"{LYAPUNOV} --fail-if 'lyapunov.dimension > 3'", "go on with one of: status, value"),
    (f"{LYAPUNOV} --fail-if 'hessian.trace.value > 3'", "lyapunov.json has no 'hessian'"),
    (f"{LYAPUNOV} --time-limit 0", "--time-limit"),
    (f"{LYAPUNOV} --loss no_such_loss", "no_such_loss"),
    (f"{LYAPUNOV} --checkpoint no/such/file", "does not exist"),
    (f"{LYAPUNOV} --checkpoint small.keras", "overwritten"),
    (f"{LYAPUNOV} --checkpoint out --json ./out", "a file of its own"),
    (f"{LYAPUNOV} --html out --json out", "a file of its own"),
    (f"{LYAPUNOV} --checkpoint x.npz", "cannot be read as a checkpoint"),
    (f"{LYAPUNOV} --json no/such/run.json", "does not exist"),
    (f"{LYAPUNOV} --custom-objects no.py", "no.py"),
    (f"{CRITICAL} --tolerance 0", "--tolerance"),
    (f"{CRITICAL} --minibatches 0", "--minibatches"),
    (f"{CRITICAL} --fail-if 'hessian > 1'", "critical.json has no 'hessian'"),
    (f"{CRITICAL} --json small.keras", "overwritten"),
    ("critical missing.keras --data small.npz", "no file"),
    ("critical bare.keras --data data.npz", "--loss"),
    ("critical bare.keras --data data.npz --loss sparse_categorical_crossentropy", "(--learning-rate F)"),
    (f"{LANDSCAPE} --directions up", "trajectory:PATH"),
    (f"{LANDSCAPE} --directions trajectory:missing.npz", "there is no file"),
    (f"{LANDSCAPE} --directions trajectory:recorded.npz", "of 26 weights, and the model has 20"),
    (f"{LANDSCAPE} --directions trajectory:recorded.npz --json recorded.npz", "overwritten"),
    (f"{LANDSCAPE} --directions step --mode inference", "(--mode, --directions)"),
    (f"{LANDSCAPE} --dimensions 3", "1<=x<=2"),
    (f"{LANDSCAPE} --points 2", "3<=x<=1001"),
    (f"{LANDSCAPE} --ascent-steps 5", "(--rho R or --adaptive-rho R)"),
    (f"{LANDSCAPE} --span 0", "--span"),
    (f"{LANDSCAPE} --rho nan", "not a finite number"),
    (f"{LANDSCAPE} --set slq.num_steps=9", "slq"),
    (f"{LANDSCAPE} --fail-if 'landscape.axes > 1'", "not a number"),
    ("landscape bare.keras --data data.npz", "--loss"),
    ("track junk.keras", "give them (--data DATA)"),
    ("track run other", "one log at a time"),
    ("track run --measures sharpness --seed 3", "--measures, --seed: for checkpoints only"),
    ("track recorded.npz --open", "none is written; give --html FILE or --out DIR"),
    ("track run --bound delta=0.1", "--bound: for checkpoints only"),
    ("track run --class-weight 0=1.0", "--class-weight: for checkpoints only"),
    ("track run --dry-run", "--dry-run: for checkpoints only"),
    (f"{TRACK} --class-weight 0:1", "--class-weight 0:1: '0:1' is not CLASS=WEIGHT"),
    (f"{TRACK} --bound delta=2", "it must lie between 0 and 1"),
    (f"{TRACK} --measures sharpness --bound delta=0.1", "the bounds need the sharpness dimension"),
    (f"{TRACK} --measures sharpness,colour", "'colour' is not a measure"),
    (f"{TRACK} --fail-if 'values.sharpness > 1'", "go on with one of: value"),
    (f"{TRACK} --fail-if 'colour > 1'", "has no 'colour'"),
    (f"{TRACK} --html junk.keras", "would be overwritten"),
    ("track no*.keras --data data.npz", "no file fits"),
    ("track data.npz --data data.npz", "is not a checkpoint"),
    ("track junk.keras --data none.npz", "no data file none.npz"),
    ("track junk.weights.h5 --data data.npz", "give the model they belong to (--model FILE)"),
    (f"{TRAJECTORY} small.keras", "give --data DATA"),
    (f"{TRAJECTORY} none.keras --data small.npz", "there is no file"),
    (f"{TRAJECTORY} none.npz", "there is no file"),
    (f"{TRAJECTORY} small.npz", "not a trajectory: its arrays are x, y; give a file"),
    (f"{TRAJECTORY} vector.npy", "vector.npy is of shape (5,) and type float64; give"),
    (f"{TRAJECTORY} vector.npz", "array 'trajectory', is of shape (5,)"),
    (f"{TRAJECTORY} whole.npy", "is of shape (5, 2) and type int64; give"),
    (f"{TRAJECTORY} boxes.npy", "boxes.npy holds Python objects, which are never unpickled"),
    (f"{TRAJECTORY} boxes.npz", "boxes.npz holds Python objects, which are never unpickled"),
    (f"{TRAJECTORY} short.npy", "has 1 rows, and a trajectory needs at least 2 steps"),
    (f"{TRAJECTORY} nan.npy", "holds NaN or infinity, first in row 3; cut it before that step"),
    (f"{TRAJECTORY} both.npz", "its arrays are trajectory, weights; give"),
    (f"{TRAJECTORY} cut.npy", "cut.npy cannot be read as a trajectory"),
    (f"{TRAJECTORY} cut.npz", "cut.npz cannot be read as a trajectory"),
    (f"{TRAJECTORY} recorded.npz --steps 9", "--steps applies to a simulation"),
    (f"{TRAJECTORY} recorded.npz --data small.npz", "--data applies to a simulation"),
    (f"{TRAJECTORY} recorded.npz --json recorded.npz", "would be overwritten"),
    (f"{TRAJECTORY} recorded.npz --memory 1e-6", "keep fewer iterates"),
    (f"{TRAJECTORY} recorded.npz --alpha nan", "not a finite number"),
    (f"{TRAJECTORY} small.keras --data small.npz --memory 1e-6", "or allow more (--memory)"),
    (f"{TRAJECTORY} small.keras --data small.npz --steps 9 --every 5", "too few for 2 iterates"),
    (f"{TRAJECTORY} small.keras --data small.npz --projection 100000", "there are 20 weights"),
    (f"{TRAJECTORY} small.keras --data small.npz --projection 20 --dry-run", "there are 20 weights"),
    (f"{TRAJECTORY} small.keras --data small.npz --json o.json --save o.json", "two outputs"),
    (f"{TRAJECTORY} wild.keras --data wild.npz --steps 50 --allow-unverified --initial-slots", "diverged"),
]


# After TensorFlow has compiled something; a quick test of the library or of a plan has the same refusal.
ONES = ("study trajectory wild", f"{LYAPUNOV} --num-exponents 41", f"{LYAPUNOV} --checkpoint x.npz")
SLOW = {line for line, _ in REFUSED if line.startswith(ONES)}
# What was measured before a stage that does not fit the memory is told, if it took ten seconds.
LATE, MEASURED_BEFORE = "--exact --memory 1e-6", {"largest", "Below", "batch", "trace"}


@pytest.mark.parametrize(
    ("line", "message"),
    [pytest.param(*each, marks=[pytest.mark.slow] if each[0] in SLOW else [], id=each[0][:80]) for each in REFUSED],
)
def test_what_is_refused_is_one_message(
    line: str, message: str, folder: Path, in_process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    before = files()
    status, text, error = in_process(*shlex.split(line))
    assert (status, text) == (2, ""), error
    assert message in error
    *told, refusal = error.splitlines()
    assert refusal.startswith("sdkeras: error: ")
    assert {each.split()[0] for each in told} <= (MEASURED_BEFORE if line.endswith(LATE) else set())
    assert files() == before
    assert not any(path.read_bytes() for path in folder.glob("track/*.jsonl"))


def test_cheap_mistakes_are_found_before_tensorflow_starts(folder: Path) -> None:
    cheap = ("no file", "missing.np", "--estimator sql", "slq.steps", "no/such", "overwritten", "nan", "--steps 0")
    cheap += ("--windows 3", "holds no Jacobians", "--fail-if", "-qr.transient", "--seed", "a file of its own")
    cheap += ("--log missing", "--log data", "--log empty")
    known = [line for line, message in REFUSED if not line.startswith("study") and "nan.npz" not in line]
    lines = [line for line in known if any(word in line + dict(REFUSED)[line] for word in cheap)]
    lines += ["demo --output-dir model.keras", "demo --seed 4294967296"]
    assert len(lines) > 30
    run = python(WITHOUT_TENSORFLOW, 2, *lines, cwd=folder)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("sdkeras: error:") == len(lines)


@pytest.mark.parametrize(
    "command",
    [
        "analyze junk.keras --data data.npz --out deep/new",
        "critical small.keras --data junk.what --out deep/new",
        "landscape small.keras --data shape.npz --out deep/new",
        "lyapunov small.keras --data x.npz --out deep/new",
        "study trajectory vector.npy --out deep/new",
        "track junk.keras --data x.npz --out deep/new",
        "report other.jsonl --out deep/new",
        "compare other.jsonl other.jsonl --out deep/new",
    ],
)
def test_what_is_refused_leaves_no_folder_behind(
    in_process, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(folder)
    assert in_process(*shlex.split(command))[0] == 2
    assert not (folder / "deep").exists()
