"""Importing the user's own Python, on purpose and leaving nothing behind."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from sdkeras.errors import DataError, ModelError, SdkerasError
from sdkeras.files.keras_types import Data

# What user code can raise that is the user's error and not ours; Ctrl-C is neither.
USER_ERRORS = (Exception, SystemExit)
COLOURS = re.compile("\x1b\\[[0-9;]*m")
_NODE = re.compile(r"\{\{function_node [^}]*\}\}\s*")
_PLACE_IN_GRAPH = re.compile(
    r"\s*$|\s*File \"|Graph execution error:|Detected at node|<stack traces|in user code:|\s*\[\[\{\{node"
)


@attrs.define
class UserImport:
    """Names of the user's modules that an import brought, and what they registered with Keras, by registered name.

    Filled when the scope of `user_import` ends.
    """

    modules: set[str] = attrs.field(factory=set)
    registered: dict[str, object] = attrs.field(factory=dict)


@contextlib.contextmanager
def user_import(folder: Path) -> Iterator[UserImport]:
    """Scope in which Python files of `folder` can be imported.

    Afterwards the folder is off `sys.path`; the folder's modules are out of `sys.modules`, so that a helper file
    of the same name in another folder is not mistaken for this one; and what they registered with Keras is
    registered no more. Installed libraries that were imported on the way stay, with what they registered.
    """
    import keras

    brought = UserImport()
    registry = keras.saving.get_custom_objects()
    registry_before, modules_before = dict(registry), set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield brought
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        brought.modules.update(
            name
            for name in set(sys.modules) - modules_before
            if name.partition(".")[0] not in modules_before and _lives_in(name, folder)
        )
        for name in brought.modules:
            del sys.modules[name]
        brought.registered = {name: value for name, value in registry.items() if registry_before.get(name) is not value}
        for name, value in brought.registered.items():
            if getattr(value, "__module__", None) in brought.modules:
                del registry[name]
                if name in registry_before:
                    registry[name] = registry_before[name]


@contextlib.contextmanager
def _user_code(failed: str, error: type[SdkerasError], folder: Path | None = None) -> Iterator[UserImport]:
    """`user_import` of a folder, the current one without; exceptions of the user's code are reported as its failure."""
    try:
        with user_import(folder or Path.cwd().resolve()) as brought:
            yield brought
    except DataError:  # of `find_function`
        raise
    except USER_ERRORS as fault:
        raise error(f"{failed}: {last_line(fault)}; correct the {'file' if folder else 'user code'}.") from fault


def _lives_in(name: str, folder: Path) -> bool:
    """Whether the module's top level is a file of the folder itself, or a package right inside it.

    Not deeper: a virtual environment inside the user's folder is not the user's code.
    """
    top = name.partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is not None and Path(file).resolve().parent in (folder, folder / top)


def last_line(error: BaseException) -> str:
    """The line under a traceback: type and message of the error, in one line; the message may be broken itself."""
    try:
        text = _NODE.sub("", COLOURS.sub("", str(error)))
    except Exception:
        text = "(its message cannot be shown)"
    # TensorFlow tells where in the graph before it tells what.
    text = "\n".join(line for line in text.splitlines() if not _PLACE_IN_GRAPH.match(line)) or text
    return in_one_line(f"{type(error).__name__}: {text}".rstrip().removesuffix(":"))


def in_one_line(text: str, longest: int = 400) -> str:
    """The text with single spaces, cut at this many characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def _import_file(file: str, option: str, advice: str) -> tuple[types.ModuleType, UserImport]:
    """The module of a Python file, and what its import brought."""
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"{option} {file!r} is not a file; {advice}.")
    if path.suffix != ".py":
        raise ModelError(f"{option} {file!r} is not a Python file; its name must end in .py.")
    path = path.resolve()
    # A name of its own, so that a file called keras.py or losses.py hides no other module.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"sdkeras_user_{path.stem.replace('.', '_')}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{option} {file!r} cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    with _user_code(f"{option} {file!r} failed while it was imported", ModelError, path.parent) as brought:
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module, brought


def load_function(spec: str, what: str) -> Callable[..., object]:
    """The user's function that `FILE.py:function` or `module:function` names.

    Raises:
        ModelError: The file or module cannot be imported, or the file has no such function.
        DataError: There is no such module or function in it.
    """
    file, _, name = spec.rpartition(":")
    if file.endswith(".py"):
        module, _ = _import_file(file, f"--{what}", "give FILE.py:FUNCTION")
        function = getattr(module, name, None)
        if inspect.isclass(function) or not callable(function):
            names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
            raise ModelError(
                f"--{what} {spec!r}: the file defines no function '{name}'; it has: {', '.join(names) or 'none'}."
            )
        return function  # type: ignore[no-any-return]
    with _user_code(f"{what} {spec!r} failed", ModelError):
        return find_function(spec, what)


def load_custom_objects(file: str) -> dict[str, object]:
    """The classes and functions of the user's Python file, as Keras takes them in `custom_objects`.

    The file is run. Its folder is on `sys.path` while it runs, and what it registers with
    `keras.saving.register_keras_serializable` is returned here instead of staying registered globally.

    Returns:
        name -> class or function: everything defined in the file (or imported by it from files beside it), under
        its name there, and everything registered, under its registered name ("package>name"). A function by a name
        that Keras has too (a helper `mse`) is left out: Keras would put it in place of its own wherever a model's file
        says "mse". Registered, it is distinguished.

    Raises:
        ModelError: There is no such file, it is not Python, or running it raises an exception.
    """
    module, brought = _import_file(
        file, "`custom_objects`", "give the Python file that defines the model's own layers, losses or optimizers"
    )
    defined = {
        key: value
        for key, value in vars(module).items()
        if _is_object(key, value) and value.__module__ in brought.modules
    }
    return {**defined, **brought.registered}


def own_objects(function: Callable[..., object], folder: Path) -> dict[str, object]:
    """The user's classes and functions in the module of a function, as `load_custom_objects` takes them of a file."""
    return {
        name: value
        for name, value in vars(sys.modules[function.__module__]).items()
        if _is_object(name, value) and _lives_in(value.__module__, folder)
    }


def _is_object(name: str, value: object) -> bool:
    """Whether it is a class, or a function of a name unknown to Keras."""
    return inspect.isclass(value) or (inspect.isfunction(value) and not is_name_of_keras(name))


def is_name_of_keras(name: str) -> bool:
    """Whether Keras has a function or a word of that name: a loss, metric, activation, initializer and so on."""
    import keras

    if name.lower() in ("accuracy", "acc", "crossentropy", "ce"):  # Keras has words of its own for these
        return True
    for kind in ("activations", "constraints", "initializers", "losses", "metrics", "regularizers"):
        with contextlib.suppress(ValueError, TypeError):
            if getattr(keras, kind).get(name) is not None:
                return True
    return False


def call_user_function(spec: str) -> Data:
    """The value that `module:callable` returns; the current folder is on the path while it is imported and called."""
    with _user_code(f"data {spec!r} failed", DataError):
        return find_function(spec)()


def find_function(spec: str, what: str = "data") -> Callable[..., object]:
    """The callable of `module:callable`, imported; call it within `user_import`.

    Raises:
        DataError: No such module or callable; the message begins with `what`. What the module raises passes.
        ModuleNotFoundError: The module imports one that is not installed.
    """
    module_name, _, attribute = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise DataError(
            f"{what} {spec!r}: there is no module '{module_name}' in {Path.cwd().resolve()} and none is installed; "
            "MODULE:CALLABLE takes a module's name without folder or .py."
        ) from error
    value: object = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            where = getattr(module, "__file__", None) or "built in"
            raise DataError(f"{what} {spec!r}: module '{module_name}' ({where}) has no '{attribute}'.")
        value = getattr(value, name)
    if not callable(value):
        raise DataError(
            f"{what} {spec!r}: '{attribute}' is not a function but of type {type(value).__name__}; put the {what} into "
            "a function that returns " + ("them." if what == "data" else "it.")
        )
    return value
