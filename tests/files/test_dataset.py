"""Data as users keep them: NumPy files, folders of datasets, functions of their own."""

import pickle
import shutil
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from file_checks import X, Y, refused, tiny
from sdkeras.errors import DataError
from sdkeras.files.data_fit import check_data
from sdkeras.files.dataset import load_data, load_training_data


def saved(tmp_path, name="data.npz", **arrays):
    path = tmp_path / name
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("names", [("x", "y"), ("x_train", "y_train")])
@pytest.mark.parametrize("weighted", [False, True])
def test_npz(tmp_path, names, weighted, compressed):
    arrays = {**dict(zip(names, (X.astype(np.float64), Y), strict=True)), "other": np.array(["text"])}
    if weighted:
        arrays["sample_weight"] = np.arange(8)
    path = str(tmp_path / "data.npz")
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    data = load_data(path)
    assert data[0].dtype == np.float64
    for loaded, array in zip(data, (X, Y, np.arange(8))[: 2 + weighted], strict=True):
        assert np.array_equal(loaded, array)


def test_npz_with_several_inputs(tmp_path):
    x, _ = load_data(saved(tmp_path, **{"x/left": X, "x/right": X + 1, "y": Y}))
    assert set(x) == {"left", "right"}
    assert np.array_equal(x["right"], X + 1)


def test_npy_pair(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.npy", "b.npy", "c.npy")]
    for path, array in zip(paths, (X, Y, np.ones(8)), strict=True):
        np.save(path, array)
    x, y = load_data(",".join(paths[:2]))
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)
    assert len(load_data(",".join(paths))) == 3
    assert len(load_data(paths[0])) == 1  # for a model that takes no targets
    for wrong in (",".join([*paths, paths[0]]), f"{tmp_path}/x.csv,{paths[1]}"):
        refused(load_data, wrong, says=(wrong, "X.npy,Y.npy"))
    refused(load_data, f"{paths[0]},{tmp_path}/none.npy", says=("none.npy", "does not exist"))


@pytest.mark.parametrize("spec", ["none.npz", "no/folder", "none.csv", "x" * 5000])
def test_missing_data(spec):
    refused(load_data, spec, says=(spec[:10],))


def test_data_of_no_known_kind(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("1,2\n")
    refused(load_data, path, says=(path, "not in a format", ".npz", "tf.data.Dataset.save", "module:callable"))


def test_npz_of_a_model_that_takes_no_targets(tmp_path):
    assert len(load_data(saved(tmp_path, x=X))) == 1


WHOLE = {"x": X, "y": Y.astype(float), "sample_weight": np.ones(8)}
UNFIT = [
    ({}, ("(none)",)),
    ({"features": X, "labels": Y}, ("features, labels", "x and y", "x_train and y_train")),
    ({"x": X, "labels": Y}, ("holds the arrays labels, x,",)),
    ({**WHOLE, "y": Y[:7]}, ("x 8, y 7, sample_weight 8", "first axes")),
    ({"x/left": X, "x/right": X[1:], "y": Y}, ("x/right 7", "x/left 8")),
    ({"x": X[:0], "y": Y[:0]}, ("0 samples",)),
    ({"x": np.float32(1), "y": Y}, ("x is a single number",)),
    ({**WHOLE, "sample_weight": np.zeros(8)}, ("every sample_weight is 0",)),
    *(
        ({**WHOLE, name: bad}, (f"{name}: the data hold an array of dtype {bad.dtype}", "numbers"))
        for bad in (X.astype(complex), X.astype(np.complex64), np.zeros(8, "datetime64[s]"))
        for name in ("x", "y")
    ),
    *(
        ({**WHOLE, name: np.where(np.arange(8) == 5, bad, WHOLE[name].T).T}, (f"{name} is {bad}", place, "replace"))
        for bad in (np.nan, np.inf, -np.inf)
        for name, place in (("x", "[5, 0]"), ("y", "[5]"), ("sample_weight", "[5]"))
    ),
]


@pytest.mark.parametrize(("arrays", "says"), UNFIT, ids=[says[0] for _, says in UNFIT])
def test_arrays_that_do_not_fit(tmp_path, arrays, says):
    path = saved(tmp_path, **arrays)
    refused(load_data, path, says=(path, *says))


class Bomb:
    """Says so when it is unpickled."""

    exploded = False

    def __reduce__(self):
        return (_explode, ())


def _explode():
    Bomb.exploded = True


def test_nothing_is_unpickled(tmp_path):
    objects = np.empty(8, object)
    objects[:] = [Bomb() for _ in range(8)]
    path = saved(tmp_path, x=objects, y=Y)
    refused(load_data, path, says=(path, "'x'", "never unpickled", "numeric array"))
    np.save(tmp_path / "x.npy", objects)
    np.save(tmp_path / "y.npy", Y)
    refused(load_data, f"{tmp_path}/x.npy,{tmp_path}/y.npy", says=("x.npy", "never unpickled"))
    for name in ("p.npz", "p.npy"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    for spec in (f"{tmp_path}/p.npz", f"{tmp_path}/p.npy,{tmp_path}/y.npy"):
        refused(load_data, spec, says=("p.np", "never unpickled", "write it again"))
    assert not Bomb.exploded
    pickle.loads(pickle.dumps(Bomb()))
    assert Bomb.exploded, "the bomb itself does not work, so the test shows nothing"
    Bomb.exploded = False


def test_members_that_are_no_arrays_and_swapped_kinds(tmp_path):
    path = tmp_path / "text.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"plain")
        archive.writestr("y", b"plain")
    refused(load_data, path, says=(path,))
    np.save(tmp_path / "a.npy", X)
    shutil.copy(tmp_path / "a.npy", tmp_path / "a.npz")
    refused(load_data, tmp_path / "a.npz", says=("a.npz", "write it again"))
    saved(tmp_path, "b.npz", x=X, y=Y)
    shutil.copy(tmp_path / "b.npz", tmp_path / "b.npy")
    refused(load_data, f"{tmp_path}/b.npy,{tmp_path}/a.npy", says=("b.npy", "write it again"))


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)


@pytest.mark.parametrize("compression", [None, "GZIP"])
def test_dataset_folder(tmp_path, compression):
    dataset().save(str(tmp_path / "ds"), compression=compression)
    batches = [y for _, y in load_data(str(tmp_path / "ds")).as_numpy_iterator()]
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert np.array_equal(np.concatenate(batches), Y)


def test_dataset_folder_of_many_shards_is_read_shard_by_shard(tmp_path):
    numbers = tf.data.Dataset.range(40).batch(2)
    numbers.save(str(tmp_path / "ds"), shard_func=lambda batch: tf.cast(batch[0] // 2 % 4, tf.int64))
    read = [int(batch[0]) // 2 % 4 for batch in load_data(str(tmp_path / "ds")).as_numpy_iterator()]
    assert read == sorted(read)


def test_dataset_folders_that_cannot_be_read(tmp_path):
    (tmp_path / "plain").mkdir()
    refused(load_data, tmp_path / "plain", says=(tmp_path / "plain", "dataset_spec.pb", "dataset.save(FOLDER)"))

    list(dataset().snapshot(str(tmp_path / "cache")))
    words = (f"folder '{tmp_path / 'cache'}'", "Dataset.snapshot()", "dataset.save('cache-saved')")
    refused(load_data, tmp_path / "cache", says=words)

    dataset().take(0).save(str(tmp_path / "nothing"))
    refused(load_data, tmp_path / "nothing", says=(tmp_path / "nothing", "0 elements"))

    for damage in ("spec", "metadata", "shard"):
        folder = tmp_path / damage
        dataset().save(str(folder))
        if damage == "spec":
            (folder / "dataset_spec.pb").write_bytes(b"\xff\xfe nonsense")
        elif damage == "metadata":
            (folder / "snapshot.metadata").unlink()
        else:
            (shard,) = folder.glob("*/*/*.snapshot")
            shard.write_bytes(shard.read_bytes()[:20])
        refused(load_data, folder, says=(folder, "dataset.save(FOLDER)"))


USER_DATA = """
import numpy as np
import helper_for_data

def arrays():
    return np.ones((4, 3)), np.arange(4)

def weighted():
    return [np.ones((4, 3)), np.arange(4), np.ones(4)]

def unweighted():
    return np.ones((4, 3)), np.arange(4), None

def several():
    return {"a": np.ones((4, 3)), "b": np.ones((4, 1))}, np.arange(4)

def named():
    return {"x": np.ones((4, 3)), "y": np.arange(4)}

def dataset():
    import tensorflow as tf
    return tf.data.Dataset.from_tensor_slices(arrays()).batch(2)

def sequence():
    import keras
    class Batches(keras.utils.PyDataset):
        def __len__(self): return 2
        def __getitem__(self, index): return arrays()
    return Batches()

def tensors():
    import tensorflow as tf
    return tf.ones((4, 3)), tf.range(4)

def nothing(): pass
def text(): return "text"
def four(): return (np.ones((4, 3)),) * 4
def nan(): return np.full((4, 3), np.nan), np.arange(4)
def missing_keys(): return {"a": 1}
def ragged(): return [[1, 2], [3]], np.arange(2)
def fails(): raise KeyError("no such column")
def quits(): raise SystemExit(3)
def needs(argument): return argument
def both(): return (np.ones((4, 3)), np.arange(4)), (np.ones((2, 3)), np.arange(2))
def listed(): return [[np.ones((4, 3)), np.arange(4)], [np.ones((2, 3)), np.arange(2)]]
def equal(): return (np.ones((4, 3)), np.arange(4)), (np.ones((4, 3)), np.arange(4))
def crossed(): return (np.ones((4, 3)), np.arange(2)), (np.ones((4, 3)), np.arange(2))
def weighed(): return (np.ones((4, 3)), np.arange(4), np.ones(4)), (np.ones((2, 3)), np.arange(2))
class Group:
    @staticmethod
    def arrays(): return arrays()
constant = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "helper_for_data.py").write_text("")
    (tmp_path / "my_data.py").write_text(USER_DATA)
    (tmp_path / "broken_data.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["arrays", "weighted", "unweighted", "several", "named", "tensors", "Group.arrays"])
def test_callable_that_returns_arrays(user_module, name):
    before = list(sys.path)
    data = load_data(f"my_data:{name}")
    assert isinstance(data, tuple)
    assert len(data) == (3 if name == "weighted" else 2)
    assert all(isinstance(part, np.ndarray) for part in data[1:])
    assert len(data[1]) == 4
    assert sys.path == before
    assert not {"my_data", "helper_for_data"} & set(sys.modules)


@pytest.mark.parametrize("name", ["both", "listed"])
def test_of_training_and_test_data_the_training_pair_is_taken_and_told(user_module, name):
    (x, y), note = load_training_data(f"my_data:{name}")
    assert (x.shape, y.shape) == ((4, 3), (4,))
    assert "two pairs of 4 and 2 samples; the first" in note
    assert load_training_data("my_data:arrays")[1] == ""
    # Of other data nobody knows which pair is meant.
    refused(load_data, f"my_data:{name}", says=("different numbers of samples", "(x_train, y_train)"))


def test_pairs_that_may_be_two_inputs_stay_these(user_module):
    (x, y), note = load_training_data("my_data:equal")
    assert note == ""
    assert [len(part) for part in (x, y)] == [2, 2]
    words = ("the data have 2", "If they are ((x_train, y_train), (x_test, y_test)), give one")
    refused(check_data, tiny(), x, y, says=words)
    assert "x_train" not in refused(check_data, tiny(), (x[0], x[0]), y[0])
    for name in ("crossed", "weighed"):
        with pytest.raises(DataError, match="different numbers"):
            load_training_data(f"my_data:{name}")


def test_callable_that_returns_a_dataset(user_module):
    assert isinstance(load_data("my_data:dataset"), tf.data.Dataset)
    assert isinstance(load_data("my_data:sequence"), keras.utils.PyDataset)


def test_callable_of_an_installed_module():
    images, _ = load_data("sdkeras.datasets:load_digits")
    assert images.shape == (1797, 8, 8)
    assert "sdkeras.datasets" in sys.modules


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("my_data:fails", ["KeyError: 'no such column'"]),
        ("my_data:quits", ["SystemExit: 3"]),
        ("my_data:needs", ["TypeError", "argument"]),
        ("my_data:nothing", ["returned None", "must return x, (x, y)"]),
        ("my_data:text", ["returned a str"]),
        ("my_data:four", ["tuple of length 4"]),
        ("my_data:nan", ["x is nan at index [0, 0]"]),
        ("my_data:missing_keys", ["arrays a,"]),
        ("my_data:ragged", ["x"]),
        ("my_data:constant", ["'constant' is not a function but of type int"]),
        ("my_data:absent", ["has no 'absent'", "my_data.py"]),
        ("absent_module:f", ["no module 'absent_module'", "MODULE:CALLABLE"]),
        ("absent_module.part:f", ["no module 'absent_module.part'"]),
        ("broken_data:f", ["not_there_at_all"]),
    ],
)
def test_callable_that_fails(user_module, spec, parts):
    before = list(sys.path)
    refused(load_data, spec, says=(spec, *parts))
    assert sys.path == before
