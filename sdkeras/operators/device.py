"""Devices of an analysis: which they are, where its vectors live, and how much memory there is."""

from __future__ import annotations

import contextlib
import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import attrs
import tensorflow as tf

from sdkeras.errors import ModelError
from sdkeras.linalg.memory import available_memory
from sdkeras.linalg.probes import Space
from sdkeras.operators.modes import DEVICE
from sdkeras.operators.tensors import SPACE


@attrs.frozen
class Devices:
    """The devices of an analysis.

    Attributes:
        names: TensorFlow's names of them, the first one for what is not shared; () for wherever TensorFlow puts it.
        on_device: Whether vectors stay there as tensors, and are not NumPy arrays.
    """

    names: tuple[str, ...] = ()
    on_device: bool = False

    @property
    def space(self) -> Space | None:
        """Where vectors live, for the algorithms of `linalg`."""
        return SPACE if self.on_device else None

    def scope(self, number: int = 0) -> contextlib.AbstractContextManager[object]:
        """What is computed in it goes to this device."""
        return tf.device(self.names[number]) if self.names else contextlib.nullcontext()

    def only(self, number: int) -> Devices:
        """One of them."""
        return attrs.evolve(self, names=self.names[number : number + 1])

    def current(self) -> int:
        """The number of the device of the present scope; 0 where it is none of them."""
        here = tf.constant(0).device.rpartition("device:")[2]
        return next((k for k, name in enumerate(self.names) if name.rpartition("device:")[2] == here), 0)

    def executor(self, workers: int) -> ThreadPoolExecutor:
        """Threads that each compute on one of the devices, in turn."""
        numbers = itertools.count()

        def begin() -> None:
            # It ends with the thread.
            self.scope(next(numbers) % max(1, len(self.names))).__enter__()

        return ThreadPoolExecutor(workers, initializer=begin)

    def memory(self) -> float | None:
        """Bytes that are free on the smallest of them; None where vectors are in the host's memory."""
        if not self.on_device or all("CPU" in name for name in self.names):
            return None
        return min(_free(name) for name in self.names)


HOST = Devices()


def devices(wanted: str = "auto") -> Devices:
    """The devices that an option names.

    'auto': those of the replicas of the strategy in whose scope this is called; or the first accelerator; or the host.
    'cpu': the host's processor with NumPy's kernels. 'gpu' or 'tpu': all of that kind. 'gpu:0' or 'gpu:0,gpu:1': these.
    'cpu:N' is a logical CPU device with the kernels of an accelerator, to try those without one.

    Raises:
        ModelError: There is no such device.
    """
    named = prepare(wanted)
    text = wanted.strip().lower()
    if text == "auto":
        return _of_strategy() or _first_accelerator() or HOST
    if text == "cpu":
        return Devices(_names("CPU")[:1])
    if text == "tpu":
        _begin_tpu()
    if text in ("gpu", "tpu"):
        names = _names(text.upper())
        if not names:
            raise ModelError(_no_device(text))
        return Devices(names, on_device=True)
    for kind, number in named:
        if f"/device:{kind.upper()}:{number}" not in _names(kind.upper()):
            raise ModelError(_no_device(f"{kind}:{number}"))
    return Devices(tuple(f"/device:{kind.upper()}:{number}" for kind, number in named), on_device=True)


def prepare(wanted: str) -> list[tuple[str, int]]:
    """The devices that are named one by one, kind and number; logical ones of the processor are made.

    Only before TensorFlow has begun can they be made, and this does not begin it.

    Raises:
        ModelError: The text names no devices.
    """
    text = wanted.strip().lower() if isinstance(wanted, str) else ""
    if re.fullmatch(DEVICE, text, re.ASCII) is None:
        raise ModelError(
            f"the device is {wanted!r}; it must be auto, cpu, gpu, tpu, or one or several of a kind, as gpu:0,gpu:1."
        )
    parts = [part.split(":") for part in text.split(",") if ":" in part]
    named = [(kind, int(number)) for kind, number in parts]
    if len(set(named)) < len(named):
        raise ModelError(f"the device is {wanted!r}, which names one of them twice; name each once.")
    _split_cpu(max((number for kind, number in named if kind == "cpu"), default=0))
    return named


def _names(kind: str) -> tuple[str, ...]:
    """The devices of this host: in a cluster TensorFlow lists those of the others as well."""
    host = tf.identity(0).device.partition("/device:")[0]
    names = [device.name.partition("/device:") for device in tf.config.list_logical_devices(kind)]
    return tuple(f"/device:{name}" for owner, _, name in names if owner in ("", host))


def _no_device(name: str) -> str:
    there = ", ".join(each.removeprefix("/device:").lower() for kind in ("CPU", "GPU", "TPU") for each in _names(kind))
    return f"there is no device {name!r} here; TensorFlow sees {there}. Take one of these (`device`), or auto."


def _of_strategy() -> Devices | None:
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return None
    local = [f"/device:{name.rpartition('device:')[2]}" for name in strategy.extended.worker_devices]
    return Devices(tuple(local), on_device=not all("CPU" in name for name in local))


def _first_accelerator() -> Devices | None:
    for kind in ("TPU", "GPU"):
        if names := _names(kind):
            return Devices(names[:1], on_device=True)
    return None


def _split_cpu(highest: int) -> None:
    """As many logical CPU devices as are asked for, where TensorFlow has not begun."""
    processors = tf.config.list_physical_devices("CPU")
    if highest and tf.config.get_logical_device_configuration(processors[0]) is None:
        with contextlib.suppress(RuntimeError):  # it has begun; the device is missing then
            parts = [tf.config.LogicalDeviceConfiguration() for _ in range(highest + 1)]
            tf.config.set_logical_device_configuration(processors[0], parts)


def _begin_tpu() -> None:
    """Connects to the TPU of this machine, or the one that the environment names."""
    if _names("TPU"):
        return
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except Exception as error:  # of whatever the environment lacks
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ModelError(f"there is no TPU here ({reason}).") from error
    del resolver


def _free(name: str) -> float:
    """Bytes that TensorFlow may still take of a device; of one that does not tell, as much as the host has."""
    place = name.rpartition("device:")[2]
    try:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            sizes = {each.name.rpartition("device:")[2]: each.memory_limit_bytes for each in session.list_devices()}
        return float(sizes[place] - tf.config.experimental.get_memory_info(place)["current"])
    except (tf.errors.OpError, ValueError, KeyError):
        return float(available_memory())
