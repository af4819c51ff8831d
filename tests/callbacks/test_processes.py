"""What needs a process of its own: a training that is killed, and one on two devices."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdkeras.results.log import FILE_NAME, read_run_log

pytestmark = pytest.mark.slow

PREAMBLE = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import json
import numpy as np
import tensorflow as tf
"""
KILLED = """
from sdkeras.callbacks import SharpnessDimension
from small_nets import X, Y, net
watch = SharpnessDimension((X, Y), batch_size=16, max_overhead=None, measures=("sharpness",), log_dir=sys.argv[2])
net().fit(X, Y, batch_size=16, epochs=100_000, verbose=0, callbacks=[watch])
"""
MIRRORED = """
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import sdkeras
from sdkeras.callbacks import SharpnessDimension
from small_nets import X, Y, net, state
found = {}
for callbacks in (0, 1):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = net()
        watch = SharpnessDimension((X, Y), batch_size=16, max_overhead=None, tolerance=0.5)
        model.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[watch] * callbacks)
        found[f"state{callbacks}"] = [part.tolist() for part in state(model)]
alone = net()
alone.set_weights(model.get_weights())
run = sdkeras.analyze(alone, (X, Y), batch_size=16, tolerance=0.9, max_hvps=500)
found["own"] = {key: reading.value for key, reading in watch.measurements[-1].values.items()}
found["plain"] = run.hessian.largest.value
found["trace"] = [run.hessian.trace.value, run.hessian.trace.stderr]
print(json.dumps(found))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-c", PREAMBLE + script, str(tests), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_training_leaves_a_log_that_can_be_read(tmp_path: Path) -> None:
    process = start(KILLED, tmp_path)
    log = tmp_path / FILE_NAME
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < 6):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
        if log.exists() and log.stat().st_size:
            read_run_log(log)  # while it grows
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    found = read_run_log(log)
    assert len(found.measurements) >= 5
    assert [each.step for each in found.measurements] == [6 * (k + 1) for k in range(len(found.measurements))]


def test_two_devices_train_the_same_and_are_measured_as_one(tmp_path: Path) -> None:
    out, err = start(MIRRORED).communicate(timeout=300)
    found = json.loads(out) if out else pytest.fail(err)
    assert found["state0"] == found["state1"]
    # Keras divides losses by the number of replicas inside the scope; the loss of training is not halved.
    assert found["own"]["sharpness"] == pytest.approx(found["plain"], rel=2e-3)
    trace, stderr = found["trace"]
    assert abs(found["own"]["hessian_trace"] - trace) < 10 * stderr
    assert found["own"]["sharpness_codimension"] > 0
