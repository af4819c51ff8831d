"""Losses in words: `huber:delta=0.1`, the user's own `loss_fn(model, batch)`, and arguments that a file leaves out."""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator

import keras

from sdkeras.errors import DataError, ModelError, did_you_mean
from sdkeras.files import models
from sdkeras.files.keras_types import Config, Loss, Model
from sdkeras.files.user_code import load_function
from sdkeras.operators.batch_loss import LossFn
from sdkeras.results.arrays import Value
from sdkeras.results.note import Note

# Not what a loss computes; a reduction is, and every file states it.
_UNNAMED = ("name", "dtype", "fn")
# A colon before FIELD or FIELD=, so that values may hold colons.
_NEXT_FIELD = re.compile(r":(?=[A-Za-z_]\w*\s*(?:=|:|$))")
_LITERALS = {"true": True, "false": False, "null": None, "none": None}


# The user's own function


def own_function(loss: Loss, loss_fn: LossFn | None) -> LossFn | None:
    """The user's own `loss_fn(model, batch)`: the one given, or imported from what `loss` names; None for neither.

    Raises:
        ModelError: Both are given, or it cannot be imported or called with a model and a batch.
    """
    if loss_fn is not None and loss is not None:
        raise ModelError(f"loss is {_words(loss)} and loss_fn is {function_name(loss_fn)}; give one of them.")
    if loss_fn is None:
        if not isinstance(loss, str) or ":" not in loss or _loss_class(loss.partition(":")[0]) is not None:
            return None
        loss_fn = _imported(loss)
    try:
        parameters = inspect.signature(loss_fn)
        parameters.bind("model", "batch")
        fits = parameters.parameters.keys().isdisjoint(("y_true", "y_pred"))
    except (TypeError, ValueError) as error:
        fits = "no signature found" in str(error)
    if not fits:
        raise ModelError(
            f"the loss function {function_name(loss_fn) if loss is None else repr(loss)} must take (model, batch); a "
            "function of (y_true, y_pred) is a loss of Keras: compile the model with it, or make it known to Keras "
            "(`custom_objects=FILE`) and give its name alone."
        )
    return loss_fn


def _imported(spec: str) -> LossFn:
    try:
        function: LossFn = load_function(spec, "loss")
    except DataError as error:
        name = spec.partition(":")[0]
        raise ModelError(f"{error} Keras has no loss '{name}' either{_near(name, _classes())}.") from error
    return function


def function_name(function: object) -> str:
    """MODULE:FUNCTION of a function."""
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', '')}:{name}"


# From words


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
    """FIELD=VALUE as an argument of the class, of the type of its default."""
    field, equals, text = (piece.strip() for piece in assignment.partition("="))
    defaults = arguments(cls)
    names = [each for each in dict.fromkeys((*defaults, "reduction")) if each not in _UNNAMED]
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
    if text.lower() in _LITERALS:
        return _LITERALS[text.lower()]
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

    def letters(text: object) -> str:
        return str(text).replace("_", "").lower()

    for known, cls in _classes().items():
        default = inspect.signature(cls).parameters["name"].default
        if letters(name) in map(letters, (known, cls.__name__, default)):
            return cls
    try:
        function = keras.losses.get(name)
    except (ValueError, TypeError):
        return None
    return _classes().get(getattr(function, "__name__", ""))


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


# Into words


def loss_words(loss: Loss) -> str:
    """A compiled loss with the arguments that are not its defaults, as `from_spec` reads them: `huber:delta=0.1`."""
    return _in_structure(loss, _words)


def loss_name(loss: Loss) -> str:
    """The name of a compiled loss, without its arguments."""
    return _in_structure(loss, lambda each: each if isinstance(each, str) else getattr(each, "name", None) or _of(each))


def _in_structure(loss: Loss, name: Callable[[Loss], str]) -> str:
    """Losses in words, in whatever structure they were compiled."""
    if isinstance(loss, dict):
        return ", ".join(f"{output}: {_in_structure(each, name)}" for output, each in loss.items())
    if isinstance(loss, (list, tuple)):
        return ", ".join(_in_structure(each, name) for each in loss)
    return str(name(loss))


def _of(loss: Loss) -> str:
    """Name of a function, or of the class of anything else."""
    return getattr(loss, "__name__", type(loss).__name__)


def _words(loss: Loss) -> str:
    if isinstance(loss, str):
        return loss
    if not isinstance(loss, keras.losses.Loss):
        return _of(loss)
    usual = inspect.signature(type(loss)).parameters.get("name")
    named = loss.name and usual is not None and loss.name != usual.default
    return (str(loss.name) if named else _spec_name(loss)) + _fields(loss)


def _spec_name(loss: Loss) -> str:
    """A name that `from_spec` knows."""
    return next((name for name, cls in _classes().items() if cls is type(loss)), type(loss).__name__)


def _fields(loss: Loss) -> str:
    """Arguments that are not their defaults, as `from_spec` reads them."""
    defaults, values = {**arguments(type(loss)), "reduction": "sum_over_batch_size"}, _values(loss)
    return "".join(
        f":{name}" if values[name] is True else f":{name}={json.dumps(values[name], default=str)}"
        for name, default in defaults.items()
        if name in values and name not in _UNNAMED and not _same(values[name], default)
    )


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


# What files leave out


def caveats(model: Model, *, with_loss: bool = True) -> tuple[Note, ...]:
    """Caveats on the file from which the model was loaded; on its loss only where that is analysed (`with_loss`)."""
    compiled, code = models.compiled_part_of(model), "loss-arguments-unknown"
    notes = [] if compiled.problem is None else [Note("compiled-part", compiled.problem)]
    stored = compiled.stored_loss if with_loss else None
    if stored is None:
        return tuple(notes)
    for loss, config in _pairs(stored.loss, stored.config):
        cls = type(loss)
        if (stored.of_keras_2 and _spec_name(loss) in _classes()) or _reads_otherwise(cls):
            continue
        # An axis is no question where every output is a vector per example.
        known = {*config, *_UNNAMED, "reduction", *(["axis"] if stored.flat else [])}
        missing = {
            name: default
            for name, default in arguments(cls).items()
            if name not in known and default is not inspect.Parameter.empty
        }
        if missing:
            s, were, others = ("s", "were", "others") if len(missing) > 1 else ("", "was", "another")
            defaults = " and ".join(json.dumps(default, default=str) for default in missing.values())
            spec = _spec_name(loss) + _fields(loss) + "".join(f":{name}=..." for name in missing)
            words = (
                f"the file does not hold {' and '.join(missing)} of {cls.__name__}; the default{s} {defaults} {were} "
                f"taken. If training had {others}, say so (`loss='{spec}'`)."
            )
            notes.append(Note(code, words))
    if stored.arguments:
        words = (
            f"the file does not hold {', '.join(stored.arguments)} of {type(model).__name__}.compile(); the class's "
            "defaults were taken. If the loss depends on it, give it as a loss_fn(model, batch) "
            "(`loss='FILE.py:FUNCTION'`)."
        )
        notes.append(Note(code, words))
    return tuple(notes)


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
