"""Losses in words: `huber:delta=0.1`, the user's own `loss_fn(model, batch)`, and arguments that a file leaves out."""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator

import keras

from sdkeras.errors import DataError, ModelError, did_you_mean
from sdkeras.files import models
from sdkeras.files.keras_types import Config, Loss, Model
from sdkeras.files.user_code import load_function
from sdkeras.operators.batch_loss import LossFn
from sdkeras.results.arrays import Value
from sdkeras.results.note import Note

UNKNOWN_ARGUMENTS = "loss-arguments-unknown"

# Not what a loss computes, or with a default that every file states.
_COMMON = ("name", "dtype", "fn", "reduction")
# A colon before FIELD or FIELD=, so that values may hold colons.
_NEXT_FIELD = re.compile(r":(?=[A-Za-z_]\w*\s*(?:=|:|$))")
_OF_KERAS_FUNCTIONS = ("y_true", "y_pred")


# Specifications


def is_own_function(loss: Loss) -> bool:
    """Whether a loss is the name of user code, FILE.py:FUNCTION or MODULE:FUNCTION, and none of Keras' names."""
    return isinstance(loss, str) and ":" in loss and _loss_class(loss.partition(":")[0]) is None


def own_function(loss: Loss, loss_fn: LossFn | None) -> LossFn | None:
    """The user's own `loss_fn(model, batch)`: the one given, or imported from what `loss` names; None for neither.

    Raises:
        ModelError: Both are given, or it cannot be imported or called with a model and a batch.
    """
    if loss_fn is None and not is_own_function(loss):
        return None
    if loss_fn is not None and loss is not None:
        raise ModelError(f"loss is {_words(loss)} and loss_fn is {function_name(loss_fn)}; give one of them.")
    function = _imported(loss) if loss_fn is None else loss_fn
    try:
        parameters = inspect.signature(function)
        parameters.bind("model", "batch")
        fits = not set(_OF_KERAS_FUNCTIONS) & set(parameters.parameters)
    except (TypeError, ValueError) as error:
        fits = "no signature found" in str(error)
    if not fits:
        raise ModelError(
            f"the loss function {function_name(function) if loss is None else repr(loss)} must take (model, batch); a "
            "function of (y_true, y_pred) is a loss of Keras: compile the model with it, or make it known to Keras "
            "(`custom_objects=FILE`) and give its name alone."
        )
    return function


def _imported(spec: str) -> LossFn:
    try:
        function: LossFn = load_function(spec, "loss")
    except DataError as error:
        name = spec.partition(":")[0]
        raise ModelError(f"{error} Keras has no loss '{name}' either{_near(name, _classes())}.") from error
    return function


def from_spec(spec: str) -> Loss:
    """The loss of `NAME` or `NAME:FIELD[=VALUE]...`, as `compile` takes it; a lone field is True.

    Raises:
        ModelError: Keras has no such loss, the loss no such argument, or the argument no such value.
    """
    name, colon, text = spec.partition(":")
    cls = _loss_class(name)
    if not colon and (cls is None or name in vars(keras.losses)):
        try:
            keras.losses.get(name)
        except ValueError as error:
            raise ModelError(
                f"the loss {name!r} is unknown to Keras{_near(name, _classes())}. Give one of keras.losses, with "
                "arguments as in huber:delta=0.1, or a loss_fn(model, batch) as FILE.py:FUNCTION or MODULE:FUNCTION."
            ) from error
        return name
    if cls is None:
        raise ModelError(f"the loss {name!r} is unknown to Keras{_near(name, _classes())}.")
    values = dict(_field(name, cls, assignment) for assignment in _NEXT_FIELD.split(text)) if colon else {}
    try:
        return cls(**values)
    except Exception as error:  # a class of the user's raises what it likes
        raise ModelError(f"the loss {spec!r} cannot be made: {type(error).__name__}: {error}") from error


def _field(name: str, cls: type, assignment: str) -> tuple[str, Value]:
    field, equals, text = (piece.strip() for piece in assignment.partition("="))
    defaults = arguments(cls)
    names = [each for each in dict.fromkeys((*defaults, "reduction")) if each not in ("name", "dtype", "fn")]
    if field not in names:
        takes = f"it takes: {', '.join(names)}"
        raise ModelError(f"the loss {name} has no argument {field!r}{_near(field, names)}; {takes}.")
    default = defaults.get(field, "")
    if not equals:
        if isinstance(default, bool) or default is inspect.Parameter.empty:
            return field, True
        raise ModelError(
            f"the loss {name} was given {field!r} without a value; write {name}:{field}={json.dumps(default)} or "
            "another value."
        )
    value = _value(text)
    if isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, (int, float)):
        fits, expected = _is_numeric(value), "a finite number"
    else:
        fits, expected = _is_numeric(value) or not isinstance(value, float), "finite"
    if not fits:
        raise ModelError(f"the loss {name} takes {expected} for {field}, got {text!r}.")
    return field, value


def _value(text: str) -> Value:
    """A literal: number, true, false, null, list, or else a string, with quotes or without."""
    lowered = text.lower()
    if lowered in ("true", "false", "null", "none"):
        return {"true": True, "false": False}.get(lowered)
    for read in (json.loads, float):
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    return text.strip("'\"")


def _is_numeric(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _near(name: str, names: Iterable[str]) -> str:
    return f"; {question.rstrip()}" if (question := did_you_mean(name, names)) else ""


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


@functools.cache
def _classes() -> dict[str, type]:
    """Keras' classes of losses by the name of their function."""
    members: list[type] = [value for value in vars(keras.losses).values() if inspect.isclass(value)]
    return {str(cls().fn.__name__): cls for cls in members if cls is not keras.losses.Loss}


def _loss_class(name: str) -> type | None:
    """The class of a loss by its own name, its function's, or a short one; also a registered class of the user's."""
    registered = keras.saving.get_registered_object(name)
    if inspect.isclass(registered) and issubclass(registered, keras.losses.Loss):
        return registered
    for known, cls in _classes().items():
        default = inspect.signature(cls).parameters["name"].default
        if _plain(name) in (_plain(known), _plain(cls.__name__), _plain(str(default))):
            return cls
    try:
        function = keras.losses.get(name)
    except (ValueError, TypeError):
        return None
    return _classes().get(getattr(function, "__name__", ""))


# Words


def function_name(function: object) -> str:
    """MODULE:FUNCTION of a function."""
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', '')}:{name}"


def words_of(model: Model, loss: Loss, loss_fn: LossFn | None) -> str:
    """The loss that is analysed: the user's own function as it was given, or the one of a compiled model."""
    if loss_fn is not None:
        return loss if isinstance(loss, str) else function_name(loss_fn)
    return loss_words(model.loss)


def loss_words(loss: Loss) -> str:
    """A compiled loss with the arguments that are not its defaults, as `from_spec` reads them: `huber:delta=0.1`."""
    if isinstance(loss, dict):
        return ", ".join(f"{name}: {loss_words(each)}" for name, each in loss.items())
    if isinstance(loss, (list, tuple)):
        return ", ".join(loss_words(each) for each in loss)
    return _words(loss)


def _words(loss: Loss) -> str:
    if isinstance(loss, str):
        return loss
    if not isinstance(loss, keras.losses.Loss):
        return str(getattr(loss, "__name__", type(loss).__name__))
    defaults = {**arguments(type(loss)), "reduction": "sum_over_batch_size"}
    values = _values(loss)
    fields = [
        f":{name}" if values[name] is True else f":{name}={json.dumps(values[name], default=str)}"
        for name, default in defaults.items()
        if name in values and name not in ("name", "dtype", "fn") and not _same(values[name], default)
    ]
    return _name(loss) + "".join(fields)


def _name(loss: Loss) -> str:
    """The name that was given to it, or that of its function or class."""
    default = inspect.signature(type(loss)).parameters.get("name")
    if loss.name and default is not None and loss.name != default.default:
        return str(loss.name)
    return _spec_name(loss)


def _spec_name(loss: Loss) -> str:
    """A name that `from_spec` knows."""
    known = [name for name, cls in _classes().items() if cls is type(loss)]
    return known[0] if known else type(loss).__name__


def _values(loss: Loss) -> dict[str, Value]:
    """Arguments of a loss object as far as it tells them: by its configuration, and what Keras keeps beside it."""
    try:
        config = dict(loss.get_config())
    except Exception:  # a class of the user's
        config = {"reduction": loss.reduction}
    return {**config, **getattr(loss, "_fn_kwargs", {})}


def _same(value: object, default: object) -> bool:
    try:
        return bool(value == default)
    except (TypeError, ValueError):  # an array
        return False


def arguments(cls: type) -> dict[str, Value]:
    """Names and defaults of what the constructor of a loss takes; through **kwargs those of the classes it extends."""
    values: dict[str, Value] = {}
    for each in cls.__mro__:
        if "__init__" not in vars(each) or each is keras.losses.Loss:
            continue
        parameters = list(inspect.signature(vars(each)["__init__"]).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                values.setdefault(parameter.name, parameter.default)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return values


# Files


def unstored_arguments(loss: Loss, config: Config, *, flat: bool, of_keras: bool = True) -> Iterator[Note]:
    """Tells which arguments of a loaded loss its file does not hold, so that defaults were taken.

    Args:
        loss: The loaded loss, in whatever structure.
        config: The same as the file has it.
        flat: Whether every output is a vector per example: an axis is then no question.
        of_keras: False leaves Keras' own losses out.
    """
    for each, stored in _pairs(loss, config):
        cls = type(each)
        if (not of_keras and _spec_name(each) in _classes()) or _reads_otherwise(cls):
            continue
        missing = {
            name: default
            for name, default in arguments(cls).items()
            if name not in stored and name not in _COMMON and default is not inspect.Parameter.empty
        }
        if flat:
            missing.pop("axis", None)
        if missing:
            names, values = (
                " and ".join(missing),
                " and ".join(json.dumps(each, default=str) for each in missing.values()),
            )
            fields = "".join(f":{name}=..." for name in missing)
            many = len(missing) > 1
            yield Note(
                UNKNOWN_ARGUMENTS,
                f"the file does not hold {names} of {cls.__name__}; the default{'s' * many} {values} "
                f"{'were' if many else 'was'} taken. If training had {'others' if many else 'another'}, say so "
                f"(`loss='{loss_words_of_stored(each)}{fields}'`).",
            )


def caveats(model: Model, *, with_loss: bool = True) -> tuple[Note, ...]:
    """Caveats on the file from which the model was loaded; none for a model that was not loaded.

    Args:
        model: The model that `sdkeras.files.models.load_model` returned.
        with_loss: Whether the file's loss is analysed, not one that was given.
    """
    compiled = models.compiled_part_of(model)
    notes = [] if compiled.problem is None else [Note("compiled-part", compiled.problem)]
    stored = compiled.stored_loss if with_loss else None
    if stored is not None:
        notes += unstored_arguments(stored.loss, stored.config, flat=stored.flat, of_keras=not stored.of_keras_2)
    if stored is not None and stored.arguments:
        notes.append(
            Note(
                UNKNOWN_ARGUMENTS,
                f"the file does not hold {', '.join(stored.arguments)} of {type(model).__name__}.compile(); the "
                "class's defaults were taken. If the loss depends on it, give it as a loss_fn(model, batch) "
                "(`loss='FILE.py:FUNCTION'`).",
            )
        )
    return tuple(notes)


def loss_words_of_stored(loss: Loss) -> str:
    """The loss as `from_spec` takes it."""
    return _spec_name(loss) + _words(loss).removeprefix(_name(loss))


def _pairs(loss: Loss, config: Config) -> Iterator[tuple[Loss, dict[str, Value]]]:
    """Loss objects, each with its stored configuration."""
    if isinstance(loss, keras.losses.Loss):
        stored = config.get("config") if isinstance(config, dict) else None
        if isinstance(stored, dict):
            yield loss, stored
    elif isinstance(loss, dict) and isinstance(config, dict):
        for name in loss:
            yield from _pairs(loss[name], config.get(name))
    elif isinstance(loss, (list, tuple)) and isinstance(config, (list, tuple)):
        for each, stored in zip(loss, config, strict=False):
            yield from _pairs(each, stored)


def _reads_otherwise(cls: type) -> bool:
    """Whether a class of the user's reads configurations in its own way, so that names in them tell nothing."""
    owner = next(each for each in cls.__mro__ if "from_config" in vars(each))
    return not owner.__module__.startswith("keras.")
