"""Do these arrays fit this model? Asked once, before the first expensive product."""

from __future__ import annotations

import re

import keras
import numpy as np

from sdkeras.errors import DataError
from sdkeras.files.dataset import TWO_PAIRS, is_pair
from sdkeras.files.keras_types import Array, Data, Loss, Model
from sdkeras.files.user_code import COLOURS, in_one_line

Shape = tuple[int | None, ...]

# Losses that compare targets and outputs entry by entry, so that their shapes must agree, and those of labels: Keras'
# names of functions and classes, in small letters and without underscores.
_ELEMENTWISE = re.compile(
    "(binary|categorical)(focal)?crossentropy|(categorical|squared)?hinge|cosinesimilarity|huber|kldivergence|logcosh|"
    "mean(absolute|absolutepercentage|squared|squaredlogarithmic)error|poisson"
)
_SPARSE = re.compile("sparsecategoricalcrossentropy")
# How Keras and TensorFlow decorate a message, beside colours: the frames of traced code, the arguments of the call.
_FRAMES = re.compile(r"in user code:\s*(?:\n *File .*\n.*)+\s*")
_ARGUMENTS = "Arguments received by"


def check_data(model: Model, x: Data, y: Data = None, sample_weight: Data = None, *, own_loss: bool = False) -> None:
    """Refuses arrays, as `checked_arrays` returns them, on which the model cannot be called or its loss be taken.

    Inputs are compared with the shapes that Sequential and functional models declare; then every built model is
    called once on one or two samples (inference mode, nothing stored), which also shows the outputs' shapes.
    What a model does not tell is not checked: outputs of unbuilt models, targets of custom losses, nor targets that a
    function of the user's (`own_loss`) takes as it likes.

    Raises:
        DataError: Wrong shape, number or names of inputs or targets; labels that are no class of the model.
    """
    try:
        _check_inputs(model, x)
        for weights in keras.tree.flatten(sample_weight):
            if weights is not None and np.min(weights) < 0:
                raise DataError(
                    f"sample_weight has negative entries, the smallest {np.min(weights):g}: the weighted mean of the "
                    "losses would be no mean; give weights of 0 or more."
                )
        outputs = _outputs(model, x)
        if outputs is not None and y is not None and not own_loss:
            _check_targets(model, outputs, y)
    except DataError as error:
        if sample_weight is None and is_pair(x) and is_pair(y):
            raise DataError(f"{error} {TWO_PAIRS}") from error
        raise


def words_of(error: Exception) -> str:
    """Message of a Keras or TensorFlow error: one line without full stop, colours, frames or call arguments."""
    text = _FRAMES.sub("", COLOURS.sub("", str(error))).partition(_ARGUMENTS)[0].strip()
    kind = f"{type(error).__name__}: "
    return in_one_line((kind + text.removeprefix(kind)).rstrip(".: \n"))


def _check_inputs(model: Model, x: Data) -> None:
    """Compares x with the inputs that the model declares, by the rules of Keras' functional models."""
    try:
        tensors = list(model.inputs)
        structure = model.input if len(tensors) > 1 else None
    except (AttributeError, TypeError, ValueError):
        return  # subclassed, or Sequential before its first call: inputs unknown
    if not tensors:
        return
    shapes = [(tensor.name, tuple(tensor.shape)) for tensor in tensors]
    if isinstance(x, dict):
        keys = [name for name, _ in shapes]
        if isinstance(structure, dict):
            by_identity = {id(tensor): key for key, tensor in structure.items()}
            keys = [by_identity.get(id(tensor), tensor.name) for tensor in tensors]
        if not set(keys) <= set(x) or (isinstance(structure, dict) and set(x) - set(keys)):
            raise DataError(
                f"the model's inputs are named {', '.join(sorted(keys))}, the data have "
                f"{', '.join(sorted(map(str, x)))}; rename or add arrays so that the names agree."
            )
        leaves = [x[key] for key in keys]
    else:
        leaves = keras.tree.flatten(x)
    if len(leaves) != len(tensors):
        raise DataError(
            f"the model has {len(tensors)} inputs ({', '.join(f'{name} {shape}' for name, shape in shapes)}), "
            f"the data have {len(leaves)}; give x as a dictionary or a tuple with one array per input."
        )
    for (name, shape), leaf in zip(shapes, leaves, strict=True):
        _check_input("x" if len(tensors) == 1 else f"input '{name}'", shape, np.shape(leaf))


def _check_input(label: str, expected: Shape, actual: tuple[int, ...]) -> None:
    wanted, sample = expected[1:], actual[1:]
    if actual and _fits(wanted, sample):
        return
    known = all(isinstance(side, int) for side in wanted)
    remedy = "give data of the shape the model was trained on"
    if actual and known and np.prod(np.asarray(wanted, int)) == np.prod(np.asarray(sample, int)):
        remedy = f"reshape it, x.reshape({(actual[0], *wanted)}), if its values are in that order"
    raise DataError(f"the model expects inputs of shape {expected}, the data have {label} of shape {actual}; {remedy}.")


def _fits(expected: Shape, actual: Shape) -> bool:
    """Whether shapes are equal as far as known, up to the last axis of length 1 that Keras adds or drops."""
    return any(
        len(first) == len(second) and all(side in (None, size) for side, size in zip(first, second, strict=True))
        for first, second in ((expected, actual), ((*expected, 1), actual), (expected, (*actual, 1)))
    )


def _outputs(model: Model, x: Data) -> dict[str, Shape] | None:
    """Shapes of the model's outputs on the first samples, by their names; None if the model cannot tell."""
    if not model.built:
        return None
    try:
        size = model.inputs[0].shape[0] or 2  # two samples, or as many as the model insists on
    except (AttributeError, TypeError, ValueError, IndexError):
        size = 2
    try:
        # Whatever the call assigns stays in the scope; the model is not touched.
        with keras.StatelessScope():
            outputs = model(_first(x, size), training=False)
    except NotImplementedError:
        return None  # a model with its own train_step and no call
    except Exception as error:
        raise DataError(
            f"the model cannot be called on the data: {words_of(error)}. The data have x of {_tree_shapes(x)}; "
            "give data of the shape and kind the model was trained on."
        ) from error
    if isinstance(outputs, dict):
        return {str(name): tuple(np.shape(value)) for name, value in outputs.items()}
    if not isinstance(outputs, (list, tuple)):
        return {"output": tuple(np.shape(outputs))}
    names = list(getattr(model, "output_names", None) or [])
    if len(set(names)) != len(outputs):
        names = [f"output {position}" for position in range(len(outputs))]
    return {name: tuple(np.shape(value)) for name, value in zip(names, outputs, strict=True)}


def _check_targets(model: Model, outputs: dict[str, Shape], y: Data) -> None:
    names = list(outputs)
    losses = _per_output(getattr(model, "loss", None), names, of_losses=True)
    targets = _per_output(y, names, of_losses=False)
    if losses is None or not any(loss is not None for loss in losses):
        return
    if targets is None:
        if all(loss is not None for loss in losses):
            raise DataError(
                f"the model has {len(names)} output{'s'[: len(names) > 1]} ({', '.join(names)}), the data have y of "
                f"{_tree_shapes(y)}; give one array of targets per output."
            )
        return
    for (name, shape), target, loss in zip(outputs.items(), targets, losses, strict=True):
        if loss is not None and isinstance(target, np.ndarray):
            _check_target(f"y of output '{name}'" if len(names) > 1 else "y", shape, target, loss)


def _per_output(values: Data, names: list[str], *, of_losses: bool) -> list[Data] | None:
    """Targets or losses in the order of the outputs; None if they do not correspond."""
    if isinstance(values, dict):
        if len(names) == 1 and len(values) == 1:
            return list(values.values())
        if not of_losses and not set(values) & set(names):
            return None
        return [values.get(name) for name in names]
    if isinstance(values, (list, tuple)):
        return list(values) if len(values) == len(names) else None
    return [values] * len(names) if len(names) == 1 or of_losses else None


def _check_target(what: str, output: Shape, target: Array, loss: Loss) -> None:
    if _is_one_of(loss, _SPARSE) and getattr(loss, "axis", -1) == -1 and output:
        _check_labels(what, output, target, getattr(loss, "ignore_class", None))
    elif _is_one_of(loss, _ELEMENTWISE) and not _fits(output[1:], target.shape[1:]):
        remedy = "reshape or encode y so that they agree"
        if target.shape[1:] in ((), (1,)) and target.dtype.kind in "iu":
            remedy = "for integer labels use the loss sparse_categorical_crossentropy, or make y one-hot"
        raise DataError(
            f"the model's output has shape {(None, *output[1:])}, the data have {what} of shape {target.shape}; "
            f"{remedy}."
        )


def _check_labels(what: str, output: Shape, target: Array, ignored: int | None) -> None:
    classes = int(output[-1] or 0)
    if not _fits(output[1:-1], target.shape[1:]):
        remedy = "give one integer label per prediction"
        if target.shape[1:] == output[1:]:
            remedy = "one-hot targets need the loss categorical_crossentropy, or y.argmax(-1)"
        raise DataError(
            f"the model's output has shape {(None, *output[1:])} ({classes} classes), the data have {what} of shape "
            f"{target.shape}; {remedy}."
        )
    if target.dtype.kind not in "iuf":  # truth values are labels; text is refused where it is read as numbers
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


def _is_one_of(loss: Loss, names: re.Pattern[str]) -> bool:
    """Whether a loss (name, function or object) is one of Keras' own of these names, not a subclass of one."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return False
    name = getattr(loss, "__name__", type(loss).__name__)
    is_of_keras = getattr(keras.losses, name, None) in (loss, type(loss))
    return is_of_keras and names.fullmatch(name.lower().replace("_", "")) is not None


def _first(tree: Data, count: int) -> Data:
    """The first samples; lists for tuples, as Keras declares several inputs."""
    if isinstance(tree, dict):
        return {key: _first(value, count) for key, value in tree.items()}
    return [_first(each, count) for each in tree] if isinstance(tree, tuple) else tree[:count]


def _tree_shapes(tree: Data) -> str:
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key}: {_tree_shapes(value)}" for key, value in tree.items()) + "}"
    return "(" + ", ".join(map(_tree_shapes, tree)) + ")" if isinstance(tree, tuple) else f"shape {tree.shape}"
