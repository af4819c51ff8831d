"""Do these arrays fit this model? Asked once, before the first expensive product."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdkeras.errors import DataError
from sdkeras.files.user_code import COLOURS, in_one_line

Array = NDArray[Any]
Shape = tuple[int | None, ...]

# Losses that compare targets and outputs entry by entry, so that their shapes must agree; by Keras' two names.
_ELEMENTWISE = (
    ("binary_crossentropy", "BinaryCrossentropy"),
    ("binary_focal_crossentropy", "BinaryFocalCrossentropy"),
    ("categorical_crossentropy", "CategoricalCrossentropy"),
    ("categorical_focal_crossentropy", "CategoricalFocalCrossentropy"),
    ("categorical_hinge", "CategoricalHinge"),
    ("cosine_similarity", "CosineSimilarity"),
    ("hinge", "Hinge"),
    ("huber", "Huber"),
    ("kl_divergence", "KLDivergence"),
    ("log_cosh", "LogCosh"),
    ("mean_absolute_error", "MeanAbsoluteError"),
    ("mean_absolute_percentage_error", "MeanAbsolutePercentageError"),
    ("mean_squared_error", "MeanSquaredError"),
    ("mean_squared_logarithmic_error", "MeanSquaredLogarithmicError"),
    ("poisson", "Poisson"),
    ("squared_hinge", "SquaredHinge"),
)
_SPARSE = (("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"),)
# How Keras and TensorFlow decorate a message, beside colours: the frames of traced code, the arguments of the call.
_FRAMES = re.compile(r"in user code:\s*(?:\n *File .*\n.*)+\s*")
_ARGUMENTS = "Arguments received by"
# Bytes of an array that are looked at at once: the array may be a file larger than the memory.
_BLOCK = 2**25
# What data that do not fit may be instead.
TWO_PAIRS = "If they are ((x_train, y_train), (x_test, y_test)), give one of the pairs."


def check_data(model: Any, x: Any, y: Any = None, sample_weight: Any = None, *, own_loss: bool = False) -> None:
    """Refuses arrays that the model cannot be called on or its loss cannot be taken of.

    Inputs are compared with the shapes that Sequential and functional models declare; then every built model is
    called once on one or two samples (inference mode, nothing stored), which also shows the outputs' shapes.
    What a model does not tell is not checked: outputs of unbuilt models, targets of custom losses.

    Args:
        model: A `keras.Model`, compiled or not.
        x: Inputs, an array or a structure (dict, list, tuple) of arrays, as `fit` takes them.
        y: Targets, likewise; None for a model whose loss takes none.
        sample_weight: One weight per sample, or None.
        own_loss: Whether a function of the user's takes the targets, as it likes; they are not checked then.

    Raises:
        DataError: Wrong shape, number or names of inputs or targets; labels that are no class of the model.
    """
    try:
        _check_data(model, x, y, sample_weight, own_loss)
    except DataError as error:
        if sample_weight is None and is_pair(x) and is_pair(y):
            raise DataError(f"{error} {TWO_PAIRS}") from error
        raise


def usable(leaf: Any) -> Array | None:
    """An array of numbers, booleans or text; None for what cannot be analysed (dates, objects, complex numbers)."""
    array = np.asarray(leaf)
    if array.dtype == object:
        entries = set(map(type, array.flat))
        if entries and entries <= {str, np.str_}:
            array = array.astype(np.str_)
        elif entries == {bytes}:
            array = array.astype(np.bytes_)
    if array.dtype.kind in "US" or (array.dtype.kind in "biuf" and array.dtype.itemsize <= 8):
        return array
    return None


def blocks(array: Any) -> Iterator[Array]:
    """The samples in order, a few at a time."""
    rows = max(1, _BLOCK * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def first_not_finite(array: Any) -> tuple[int, ...] | None:
    """Index of the first NaN or infinity, None where there is none."""
    if array.dtype.kind != "f":
        return None
    before = 0
    for block in blocks(array):
        finite = np.isfinite(block)
        if not finite.all():
            first, *inner = np.unravel_index(int(np.argmin(finite)), block.shape)
            return (before + int(first), *map(int, inner))
        before += len(block)
    return None


def is_pair(value: Any) -> bool:
    """Whether it is two arrays: two inputs or two targets, or the (x, y) of training or of the test."""
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(len(getattr(part, "shape", ())) > 0 for part in value)
    )


def words_of(error: Exception) -> str:
    """What Keras or TensorFlow says is wrong: one line without full stop, colours, frames or arguments of the call."""
    text = _FRAMES.sub("", COLOURS.sub("", str(error))).partition(_ARGUMENTS)[0].strip()
    kind = f"{type(error).__name__}: "
    return in_one_line((kind + text.removeprefix(kind)).rstrip(".: \n"))


def check_kind(leaf: Any) -> Array | None:
    """The array of numbers, booleans or text that a leaf of the data is; None for None.

    Raises:
        DataError: It is a ragged or sparse tensor, or of another kind.
    """
    if leaf is None:
        return None
    if hasattr(leaf, "nested_row_splits") or hasattr(leaf, "dense_shape"):
        raise DataError(
            f"the data hold a {type(leaf).__name__}; make it dense, for example with .to_tensor() or padded_batch. "
            "Batches of a dataset may have different lengths."
        )
    array = usable(leaf)
    if array is None:
        raise DataError(
            f"the data hold an array of dtype {np.asarray(leaf).dtype}; only booleans, integers and floats of up to 64 "
            "bits can be analysed, and text where the model encodes it. Encode dates and categories as numbers, split "
            "complex numbers into two."
        )
    return array


def _check_data(model: Any, x: Any, y: Any, sample_weight: Any, own_loss: bool) -> None:
    import keras

    for leaf in (*_leaves(x), *_leaves(y), *_leaves(sample_weight)):
        check_kind(leaf)
    _check_inputs(model, x)
    _check_weights(x, sample_weight)
    outputs = _outputs(model, x)
    losses = None if own_loss else getattr(model, "loss", None)
    if outputs is None or losses is None:
        return
    names, shapes = _named(model, outputs)
    targets = _per_output(y, names, "targets")
    chosen = _per_output(losses, names, "losses")
    if chosen is None:
        return
    if y is None:  # whether the loss takes none is seen when it is computed
        return
    if targets is None:
        if all(loss is not None for loss in chosen):
            given = _tree_shapes(y)
            raise DataError(
                f"the model has {len(names)} output{'s'[: len(names) > 1]} ({', '.join(names)}), the data have y of "
                f"{given}; give one array of targets per output."
            )
        return
    for name, shape, target, loss in zip(names, shapes, targets, chosen, strict=True):
        if loss is None or target is None or isinstance(target, (dict, list, tuple)):
            continue
        _check_target(keras, name if len(names) > 1 else "", shape, np.asarray(target), loss)


# Inputs


def _check_inputs(model: Any, x: Any) -> None:
    """Compares x with the inputs that the model declares, by the rules of Keras' functional models."""
    try:
        tensors = list(model.inputs)
        structure = model.input if len(tensors) > 1 else None
    except (AttributeError, TypeError, ValueError):
        return  # subclassed, or Sequential before its first call: inputs unknown
    if not tensors:
        return
    expected = [(tensor.name, tuple(tensor.shape)) for tensor in tensors]
    if isinstance(x, dict):
        keys = [name for name, _ in expected]
        if isinstance(structure, dict):
            by_identity = {id(tensor): key for key, tensor in structure.items()}
            keys = [by_identity.get(id(tensor), tensor.name) for tensor in tensors]
        surplus = set(x) - set(keys) if isinstance(structure, dict) else set()
        if not set(keys) <= set(x) or surplus:
            raise DataError(
                f"the model's inputs are named {', '.join(sorted(keys))}, the data have "
                f"{', '.join(sorted(map(str, x)))}; rename or add arrays so that the names agree."
            )
        given = [x[key] for key in keys]
    else:
        given = _leaves(x)
    if len(given) != len(expected):
        raise DataError(
            f"the model has {len(expected)} inputs ({', '.join(f'{name} {shape}' for name, shape in expected)}), the "
            f"data have {len(given)}; give x as a dictionary or a tuple with one array per input."
        )
    for (name, shape), leaf in zip(expected, given, strict=True):
        if leaf is not None:
            label = "x" if len(expected) == 1 else f"input '{name}'"
            _check_input(label, shape, np.shape(leaf))


def _check_input(label: str, expected: Shape, given: tuple[int, ...]) -> None:
    wanted, sample = expected[1:], given[1:]
    # Keras adds or drops a last axis of length 1 by itself.
    if given and (_agree(wanted, sample) or _agree((*wanted, 1), sample) or _agree(wanted, (*sample, 1))):
        return
    known = all(isinstance(side, int) for side in wanted)
    if given and known and np.prod(np.asarray(wanted, int)) == np.prod(np.asarray(sample, int)):
        remedy = f"reshape it, x.reshape({(given[0], *wanted)}), if its values are in that order"
    else:
        remedy = "give data of the shape the model was trained on"
    raise DataError(f"the model expects inputs of shape {expected}, the data have {label} of shape {given}; {remedy}.")


def _agree(expected: Shape, given: Shape) -> bool:
    return len(expected) == len(given) and all(
        side is None or side == size for side, size in zip(expected, given, strict=True)
    )


def _check_weights(x: Any, sample_weight: Any) -> None:
    counts = {np.shape(leaf)[:1] for leaf in _leaves(x) if leaf is not None}
    for leaf in _leaves(sample_weight):
        if leaf is not None and len(counts) == 1 and np.shape(leaf)[:1] not in counts:
            raise DataError(
                f"sample_weight has shape {np.shape(leaf)}, but x has {counts.pop()[0]} samples; give one weight per "
                "sample."
            )
        if leaf is not None and np.size(leaf) and np.min(np.asarray(leaf)) < 0:
            raise DataError(
                f"sample_weight has negative entries, the smallest {np.min(np.asarray(leaf)):g}: the weighted mean of "
                "the losses would be no mean; give weights of 0 or more."
            )


# Outputs


def _outputs(model: Any, x: Any) -> Any:
    """The model's outputs on the first samples; None if the model cannot tell."""
    import keras

    if not model.built:
        return None
    few = _first(x, _batch_size(model))
    try:
        # Whatever the call assigns stays in the scope; the model is not touched.
        with keras.StatelessScope():
            return model(few, training=False)
    except NotImplementedError:
        return None  # a model with its own train_step and no call
    except Exception as error:
        raise DataError(
            f"the model cannot be called on the data: {words_of(error)}. The data have x of {_tree_shapes(x)}; "
            "give data of the shape and kind the model was trained on."
        ) from error


def _batch_size(model: Any) -> int:
    """Two samples, or as many as the model insists on."""
    try:
        size = model.inputs[0].shape[0]
    except (AttributeError, TypeError, ValueError, IndexError):
        size = None
    return size or 2


def _named(model: Any, outputs: Any) -> tuple[list[str], list[Shape]]:
    if isinstance(outputs, dict):
        return [str(key) for key in outputs], [tuple(np.shape(value)) for value in outputs.values()]
    if isinstance(outputs, (list, tuple)):
        names = list(getattr(model, "output_names", None) or [])
        if len(names) != len(outputs):
            names = [f"output {position}" for position in range(len(outputs))]
        return names, [tuple(np.shape(value)) for value in outputs]
    return ["output"], [tuple(np.shape(outputs))]


def _per_output(values: Any, names: list[str], what: str) -> list[Any] | None:
    """Targets or losses in the order of the outputs; None if they do not correspond."""
    if isinstance(values, dict):
        if len(names) == 1 and len(values) == 1:
            return list(values.values())
        if what == "targets" and not set(values) & set(names):
            return None
        return [values.get(name) for name in names]
    if isinstance(values, (list, tuple)) and (what == "losses" or any(hasattr(part, "shape") for part in values)):
        return list(values) if len(values) == len(names) else None
    if len(names) == 1 or what == "losses":
        return [values] * len(names)
    return None


def _check_target(keras: Any, name: str, output: Shape, target: Array, loss: Any) -> None:
    what = f"y of output '{name}'" if name else "y"
    if _is_one_of(keras, loss, _SPARSE) and getattr(loss, "axis", -1) == -1 and output:
        _check_labels(what, output, target, getattr(loss, "ignore_class", None))
    elif _is_one_of(keras, loss, _ELEMENTWISE) and not _same_shape(output[1:], target.shape[1:]):
        remedy = "reshape or encode y so that they agree"
        if target.shape[1:] in ((), (1,)) and target.dtype.kind in "iu":
            remedy = "for integer labels use the loss sparse_categorical_crossentropy, or make y one-hot"
        raise DataError(
            f"the model's output has shape {(None, *output[1:])}, the data have {what} of shape {target.shape}; "
            f"{remedy}."
        )


def _same_shape(output: Shape, target: Shape) -> bool:
    """Equal, up to the last axis of length 1 that Keras adds or drops."""
    return target == output or (*target, 1) == output or target == (*output, 1)


def _check_labels(what: str, output: Shape, target: Array, ignored: int | None) -> None:
    classes = int(output[-1] or 0)
    if not _same_shape(output[1:-1], target.shape[1:]):
        remedy = "give one integer label per prediction"
        if target.shape[1:] == output[1:]:
            remedy = "one-hot targets need the loss categorical_crossentropy, or y.argmax(-1)"
        raise DataError(
            f"the model's output has shape {(None, *output[1:])} ({classes} classes), the data have {what} of shape "
            f"{target.shape}; {remedy}."
        )
    if target.dtype.kind == "b":
        return
    wrong = (target < 0) | (target >= classes) | (target != np.floor(target))
    if ignored is not None:
        wrong &= target != ignored
    if wrong.any():
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), target.shape))
        raise DataError(
            f"{what} holds the label {target[index]} (sample {index[0]}), but the model has {classes} classes and "
            f"labels must be integers from 0 to {classes - 1}; number the classes from 0."
        )


def _is_one_of(keras: Any, loss: Any, names: tuple[tuple[str, str], ...]) -> bool:
    """Whether a loss (name, function or object) is one of Keras' own of these names, not a subclass of one."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return False
    functions = [getattr(keras.losses, function, None) for function, _ in names]
    classes = [getattr(keras.losses, cls, None) for _, cls in names]
    return any(loss is function for function in functions) or type(loss) in classes


# Structures


def _leaves(tree: Any) -> list[Any]:
    """Arrays of a structure in Keras' order (dictionaries by sorted key); a list of numbers is one array."""
    if tree is None:
        return [None]
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree, key=str) for leaf in _leaves(tree[key])]
    if _is_structure(tree):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree]


def _is_structure(tree: Any) -> bool:
    return isinstance(tree, (list, tuple)) and any(
        part is None or hasattr(part, "shape") or isinstance(part, dict) for part in tree
    )


def _first(tree: Any, count: int) -> Any:
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: _first(value, count) for key, value in tree.items()}
    if _is_structure(tree):
        return [_first(part, count) for part in tree]
    return np.asarray(tree)[:count]


def _tree_shapes(tree: Any) -> str:
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key}: {_tree_shapes(value)}" for key, value in tree.items()) + "}"
    if _is_structure(tree):
        return "(" + ", ".join(_tree_shapes(part) for part in tree) + ")"
    return "None" if tree is None else f"shape {np.shape(tree)}"
