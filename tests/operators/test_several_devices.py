"""Several devices of one host, here logical ones of its processor: the numbers of one, and every device at work."""

import json

import pytest

from processes import python

# In a process of its own, since devices can be made only before TensorFlow begins.
_CODE = """
import json, sys
import keras, numpy as np, tensorflow as tf
from sdkeras.operators.device import devices

count = int(sys.argv[1])
names = ",".join(f"cpu:{k}" for k in range(count))
assert len(devices(names).names) == count  # makes them
import sdkeras
from sdkeras.operators.engine import Engine

used = set()
product = Engine.product
def watched(self, point, vector, batch):
    here = product(self, point, vector, batch)
    used.add(here.device[-5:])
    assert {here.device} == {x.device for x in (point, vector, *batch.tensors)}, (here.device, point.device)
    return here
Engine.product = watched

keras.utils.set_random_seed(0)
layers = keras.layers
model = keras.Sequential([keras.Input((8,)), layers.Dense(30, "tanh"), layers.BatchNormalization(), layers.Dense(3)])
model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
x = np.random.default_rng(0).standard_normal((210, 8)).astype("float32")  # a smaller last batch
y = x[:, :3] ** 2
model.fit(x, y, batch_size=32, epochs=2, verbose=0)
loss = lambda device: sdkeras.EmpiricalLoss(model, (x, y), 32, device=device)
several, host = (sdkeras.HessianOperator(loss(device)) for device in (names, "cpu"))
v = np.random.default_rng(1).standard_normal((5, host.size)).astype("float32")
found = {}
for name, product_of in {"vector": lambda H: H.matvec(v[0]), "rows": lambda H: H.rows(v)}.items():
    used.clear()
    ours, theirs = product_of(several), product_of(host)
    found[name] = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    found[name + " on"] = len(used)
with tf.device("CPU:0"):
    there = several.matvec(tf.constant(v[0]))
    found["tensor"] = float(np.linalg.norm(there.numpy() - host.matvec(v[0])) / np.linalg.norm(there))
products = several.num_products
several.matvec(v[0])
found["products"] = several.num_products - products
options = {"batch_size": 32, "runs": 6, "settings": {"slq": {"num_steps": 12}}, "samples": 128}
used.clear()
runs = [sdkeras.analyze(model, (x, y), device=device, **options) for device in (names, "cpu:0")]
found["runs on"] = len(used)
found["sd"] = [run.sharpness_dimension.value for run in runs]
found["sharpness"] = [run.edge_of_stability.sharpness for run in runs]
found["trace"] = [run.hessian.trace.value for run in runs]
found["hvps"] = [run.provenance.num_hvps for run in runs]
found["device"] = runs[0].provenance.device
with tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(count)]).scope():
    found["strategy"] = len(devices("auto").names)
    found["in a strategy"] = sdkeras.analyze(model, (x, y), **options).provenance.device
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_devices_give_the_numbers_of_one(count: int) -> None:
    done = python(_CODE, count)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # Sums of seven batches in another order.
    for product in ("vector", "rows", "tensor"):
        assert found[product] < 1e-6
    assert found["vector on"] == found["rows on"] == found["runs on"] == count
    assert found["products"] == 7
    assert found["sd"][0] == pytest.approx(found["sd"][1], rel=1e-5)
    assert found["sharpness"][0] == pytest.approx(found["sharpness"][1], rel=1e-5)
    assert found["trace"][0] == pytest.approx(found["trace"][1], rel=1e-5)
    assert found["hvps"][0] == found["hvps"][1]
    assert all(f"cpu:{k}" in found["device"] for k in range(count))
    assert found["strategy"] == count
    assert found["in a strategy"] == found["device"]
