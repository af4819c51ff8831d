"""Everything public in keras.layers, keras.activations and keras.losses, with a small model for each.

`cases()` lists the models; `public_names` says what the installed Keras offers, so that what has no case is seen.
"""

from __future__ import annotations

import importlib.util
import inspect
import tempfile
from collections.abc import Callable
from typing import Any

import attrs
import keras
import numpy as np

from layer_scan.models import (
    NUM_EXAMPLES,
    Build,
    GatedLayer,
    Inside,
    Make,
    NotTriedError,
    Problem,
    QuarticLoss,
    SquaredWrapper,
    adapted,
    between,
    bits,
    first,
    integers,
    masked,
    normal,
    one_hot,
    positive,
    probabilities,
    random,
    signs,
    stateful,
    under,
    words,
)

layers, activations, losses = keras.layers, keras.activations, keras.losses

MODULES = ("layers", "activations", "losses")


@attrs.frozen(eq=False)
class Case:
    """One row of the table.

    Attributes:
        module: 'layers', 'activations' or 'losses'.
        name: Public name of what is tested.
        build: Makes the model.
        variant: What is special about this row, '' for the ordinary use.
        no_derivative: Why the thing has no derivative and stands before the first weights; '' if it has one.
        covers: Further public names that this row tests.
    """

    module: str
    name: str
    build: Build
    variant: str = ""
    no_derivative: str = ""
    covers: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name


def public_names(module: str) -> dict[str, tuple[str, ...]]:
    """Everything public in a module of Keras: the name to use -> other names of the same thing.

    One object under several names counts once, under its own (AveragePooling1D, not AvgPool1D). A function beside
    a class with the same letters (mean_squared_error, MeanSquaredError) is the class's other form.
    """
    home = getattr(keras, module)
    by_object: dict[int, list[str]] = {}
    for name in sorted(name for name in dir(home) if not name.startswith("_")):
        if not inspect.ismodule(getattr(home, name)):
            by_object.setdefault(id(getattr(home, name)), []).append(name)
    found: dict[str, tuple[str, ...]] = {}
    classes: dict[str, str] = {}
    for names in by_object.values():
        own = getattr(getattr(home, names[0]), "__name__", "")
        first = own if own in names else names[0]
        found[first] = tuple(name for name in names if name != first)
        if inspect.isclass(getattr(home, first)):
            classes[first.lower()] = first
    for name in list(found):
        owner = classes.get(name.replace("_", ""))
        if owner is not None and owner != name:
            found[owner] += (name, *found.pop(name))
    return found


def cases() -> list[Case]:
    """The cases, in the order of the public names; a name without one gets a case that says so."""
    listed: dict[tuple[str, str], list[Case]] = {}
    for module, made in (("layers", _LAYERS), ("activations", _ACTIVATIONS), ("losses", _LOSSES)):
        for case in made:
            listed.setdefault((module, case.name), []).append(case)
    covered = {(case.module, name) for group in listed.values() for case in group for name in case.covers}
    found = []
    for module in MODULES:
        for name in public_names(module):
            if (module, name) not in covered:
                found += listed.get((module, name), [Case(module, name, unknown)])
    return found


def unknown() -> Problem:
    raise NotTriedError("no model is known for it yet")


# Things that need more than a constructor


def _saved_model(make_inside: Callable[[], list[Any]]) -> Build:
    """TFSMLayer around a SavedModel of the layers that are made."""

    def make() -> Any:
        exported = keras.Sequential([keras.Input((4,)), *make_inside()])
        folder = tempfile.TemporaryDirectory(prefix="sdkeras-layers-")
        exported.export(folder.name, verbose=False)
        layer = layers.TFSMLayer(folder.name, call_endpoint="serve")
        layer.exported_to = folder  # it goes when the layer goes
        return layer

    return between(make, (4,))


def _jax_layer() -> Any:
    if importlib.util.find_spec("jax") is None:
        raise NotTriedError("needs the package jax, which is not installed here")
    import jax.numpy as jnp  # type: ignore[import-not-found,unused-ignore]

    rng = random(3)
    params = {"w": rng.standard_normal((4, 3)).astype("float32")}
    return layers.JaxLayer(lambda params, inputs: jnp.tanh(inputs @ params["w"]), params=params)


def _flax_layer() -> Any:
    if importlib.util.find_spec("flax") is None:
        raise NotTriedError("needs the packages jax and flax, which are not installed here")
    from flax import linen  # type: ignore[import-not-found,unused-ignore]

    return layers.FlaxLayer(linen.Dense(3))


def _torch_wrapper() -> Any:
    raise NotTriedError("runs on Keras' torch backend only; sdkeras needs TensorFlow")


def _dense() -> Any:
    return layers.Dense(4, activation="tanh")


def _spectrogram(mode: str) -> Make:
    return lambda: layers.STFTSpectrogram(mode, frame_length=8, frame_step=4, fft_length=8)


def _reversible(x: Any) -> Any:
    """Token embeddings, a nonlinearity, and the same table again for the logits."""
    table = layers.ReversibleEmbedding(6, 3)
    return table(keras.ops.tanh(table(x)), reverse=True)


def _bounding_boxes(tensors: Any) -> Any:
    images, boxes, labels = tensors
    both = {"images": images, "bounding_boxes": {"boxes": boxes, "labels": labels}}
    return layers.MaxNumBoundingBoxes(max_number=3, bounding_box_format="xyxy")(both)["bounding_boxes"]["boxes"]


def _pair(layer: Any) -> Callable[[Any], Any]:
    """Cross attention: keys and values are another input than the queries."""
    return lambda tensors: layer(tensors[0], tensors[1])


def _self(layer: Any, **options: Any) -> Callable[[Any], Any]:
    return lambda x: layer(x, x, **options)


def _again(module: Any, thing: Any) -> Any:
    """A layer, activation or loss that went through its module's serialize and deserialize."""
    return module.deserialize(module.serialize(thing))


_VOCABULARY = ["red", "green", "blue"]
N = NUM_EXAMPLES
_IMAGE = (8, 7, 3)
_UNIT = (0.0, 1.0)  # value range of the images, which a sigmoid makes


def _layer(
    name: str, build: Build, variant: str = "", *, no_derivative: str = "", covers: tuple[str, ...] = ()
) -> Case:
    return Case("layers", name, build, variant, no_derivative, covers)


def _plain(
    name: str,
    shapes: tuple[int, ...] | list[tuple[int, ...]],
    variant: str = "",
    *,
    mode: str = "train",
    **options: Any,
) -> Case:
    """A layer that takes tensors of the given shapes (without batch axis) and needs nothing but its options."""
    all_shapes = shapes if isinstance(shapes, list) else [shapes]
    return _layer(name, between(lambda: getattr(layers, name)(**options), *all_shapes, mode=mode), variant)


def _image(name: str, variant: str = "", **options: Any) -> Case:
    """An image layer, between a layer that makes images with values from 0 to 1 and one that reads them."""
    return _layer(name, between(lambda: getattr(layers, name)(**options), _IMAGE, squash="sigmoid"), variant)


def _augmentation(name: str, **options: Any) -> Case:
    """The same layer where it is mostly used: on the data, before all weights."""
    images = random(15).uniform(0, 1, (N, *_IMAGE)).astype("float32")
    return _layer(name, first(lambda: getattr(layers, name)(**options), images), "before all weights")


_JITTER: dict[str, Any] = {
    "value_range": _UNIT,
    "brightness_factor": 0.2,
    "contrast_factor": 0.2,
    "saturation_factor": (0.3, 0.7),
    "hue_factor": 0.2,
}
_STRINGS = "takes strings"
_INTEGERS = "takes integers"


def _adapted_lookup(output_mode: str) -> Case:
    """Integers up to 7, after a vocabulary of those up to 5."""
    make = first(
        lambda: adapted(layers.IntegerLookup(output_mode=output_mode), integers(20, 4)), integers(N, 4, high=8)
    )
    return _layer("IntegerLookup", make, f"adapted, {output_mode}", no_derivative=_INTEGERS)


_LAYERS: list[Case] = [
    # Layers at large
    _plain("Activation", (5,), activation="tanh"),
    _plain("ActivityRegularization", (5,), l1=0.01, l2=0.1),
    _plain("Dense", (5,), units=4, activation="tanh"),
    _plain("Dense", (5,), "LoRA", units=4, lora_rank=2),
    _plain("EinsumDense", (3, 2), equation="abc,cd->abd", output_shape=(3, 4), bias_axes="d", activation="gelu"),
    _layer("Embedding", first(lambda: layers.Embedding(6, 3), integers(N, 4))),
    _layer("Embedding", masked(lambda: layers.LSTM(3), mask_zero=True), "mask_zero, then LSTM"),
    _layer("Embedding", first(lambda: layers.Embedding(6, 3, lora_rank=2), integers(N, 4)), "LoRA"),
    _layer("ReversibleEmbedding", first(lambda: _reversible, integers(N, 4))),
    _plain("Flatten", (3, 2)),
    _plain("Identity", (5,)),
    _layer("Input", between(lambda: layers.Dense(4, activation="tanh"), (5,)), covers=("InputLayer",)),
    _plain("Lambda", (5,), function=lambda x: x**3 - x),
    _layer("Layer", between(GatedLayer, (5,)), "a subclass", covers=("InputSpec",)),
    _layer("Wrapper", between(lambda: SquaredWrapper(layers.Dense(4)), (5,)), "a subclass"),
    _layer(
        "deserialize", between(lambda: _again(layers, layers.Dense(4, activation="tanh")), (5,)), covers=("serialize",)
    ),
    _layer("Masking", masked(lambda: layers.SimpleRNN(3)), "then SimpleRNN"),
    _layer("Masking", masked(lambda: layers.GlobalAveragePooling1D()), "then mean"),
    _plain("Permute", (3, 2), dims=(2, 1)),
    _plain("RepeatVector", (4,), n=3),
    _plain("Reshape", (6,), target_shape=(3, 2)),
    *(
        _layer("SpectralNormalization", between(lambda: layers.SpectralNormalization(_dense()), (5,), mode=mode), mode)
        for mode in ("train", "inference")
    ),
    _layer("TimeDistributed", between(lambda: layers.TimeDistributed(_dense()), (4, 2))),
    _layer("TFSMLayer", _saved_model(lambda: [_dense()]), "a SavedModel of Dense"),
    _layer(
        "TFSMLayer",
        _saved_model(lambda: [_dense(), layers.LayerNormalization()]),
        "a SavedModel with LayerNormalization",
    ),
    _layer("TorchModuleWrapper", between(_torch_wrapper, (4,))),
    _layer("JaxLayer", between(_jax_layer, (4,))),
    _layer("FlaxLayer", between(_flax_layer, (4,))),
    # Merging
    _plain("Add", [(5,), (5,)]),
    _plain("Average", [(5,), (5,)]),
    _plain("Concatenate", [(5,), (3,)]),
    _plain("Dot", [(3, 2), (4, 3)], axes=(1, 2)),
    _plain("Dot", [(5,), (5,)], "normalize", axes=1, normalize=True),
    _plain("Maximum", [(5,), (5,)]),
    _plain("Minimum", [(5,), (5,)]),
    _plain("Multiply", [(5,), (5,)]),
    _plain("Subtract", [(5,), (5,)]),
    # Attention
    _plain("AdditiveAttention", [(3, 4), (5, 4)]),
    _plain("Attention", [(3, 4), (5, 4)], "use_scale", use_scale=True),
    _plain("Attention", [(3, 4), (5, 4)], "concat", score_mode="concat"),
    _layer(
        "Attention",
        between(lambda: lambda x: layers.Attention(dropout=0.3)([x, x], use_causal_mask=True), (4, 3)),
        "causal, dropout",
    ),
    _layer("MultiHeadAttention", between(lambda: _pair(layers.MultiHeadAttention(2, 2)), (3, 4), (5, 4)), "cross"),
    _layer(
        "MultiHeadAttention",
        between(lambda: _self(layers.MultiHeadAttention(2, 2), use_causal_mask=True), (4, 3)),
        "causal",
    ),
    _layer(
        "MultiHeadAttention", between(lambda: _self(layers.MultiHeadAttention(2, 2, dropout=0.3)), (4, 3)), "dropout"
    ),
    _layer("MultiHeadAttention", masked(lambda: _self(layers.MultiHeadAttention(2, 2))), "masked"),
    _layer("GroupQueryAttention", between(lambda: _self(layers.GroupQueryAttention(2, 4, 2)), (4, 3))),
    _layer(
        "GroupQueryAttention",
        between(lambda: _self(layers.GroupQueryAttention(2, 4, 2, use_gate=True), use_causal_mask=True), (4, 3)),
        "gate, causal",
    ),
    # Normalization
    _plain("BatchNormalization", (5,), "train"),
    _plain("BatchNormalization", (4, 3, 2), "train, images"),
    _layer("BatchNormalization", masked(lambda: layers.BatchNormalization()), "train, masked"),
    _plain("BatchNormalization", (5,), "inference", mode="inference"),
    _plain("BatchNormalization", (5,), "frozen", trainable=False),
    _plain("GroupNormalization", (3, 4), groups=2),
    _plain("GroupNormalization", (4, 3, 2), "instance", groups=-1),
    _plain("LayerNormalization", (3, 4)),
    _plain("LayerNormalization", (3, 4), "two axes", axis=(1, 2)),
    _plain("Normalization", (4,), mean=[0.1, -0.2, 0.3, 0.0], variance=[0.5, 1.0, 2.0, 0.7]),
    _layer("Normalization", between(lambda: adapted(layers.Normalization(), 2 + 3 * normal(20, 4)), (4,)), "adapted"),
    _plain("RMSNormalization", (3, 4)),
    _plain("UnitNormalization", (3, 4)),
    # Activations as layers
    _plain("ELU", (6,), alpha=0.7),
    _plain("LeakyReLU", (6,), negative_slope=0.2),
    _plain("PReLU", (6,)),
    _plain("PReLU", (3, 2), "shared_axes", shared_axes=[1]),
    _plain("ReLU", (6,)),
    _plain("ReLU", (6,), "max_value, slope, threshold", max_value=1.0, negative_slope=0.1, threshold=0.1),
    _plain("Softmax", (6,)),
    # Convolution
    _plain("Conv1D", (7, 2), filters=3, kernel_size=2, activation="tanh"),
    _plain(
        "Conv1D",
        (7, 2),
        "causal, dilation",
        filters=3,
        kernel_size=2,
        padding="causal",
        dilation_rate=2,
        activation="tanh",
    ),
    _plain("Conv2D", (5, 4, 2), "strides", filters=3, kernel_size=2, strides=2, activation="tanh"),
    _plain(
        "Conv2D",
        (5, 4, 2),
        "dilation, same",
        filters=3,
        kernel_size=2,
        dilation_rate=2,
        padding="same",
        activation="tanh",
    ),
    _plain("Conv2D", (5, 4, 2), "groups", filters=4, kernel_size=3, groups=2, activation="tanh"),
    _plain("Conv3D", (3, 4, 2, 2), filters=2, kernel_size=2, strides=(1, 2, 1), padding="same", activation="tanh"),
    _plain("Conv1DTranspose", (4, 2), filters=2, kernel_size=3, strides=2, activation="tanh"),
    _plain("Conv2DTranspose", (3, 2, 2), filters=2, kernel_size=3, strides=2, padding="same", activation="tanh"),
    _plain("Conv3DTranspose", (2, 2, 1, 2), filters=2, kernel_size=2, strides=2, activation="tanh"),
    _plain("DepthwiseConv1D", (7, 2), kernel_size=3, depth_multiplier=2, activation="tanh"),
    _plain("DepthwiseConv2D", (5, 4, 2), kernel_size=2, depth_multiplier=2, activation="tanh"),
    _plain("SeparableConv1D", (7, 2), filters=3, kernel_size=3, activation="tanh"),
    _plain("SeparableConv2D", (5, 4, 2), filters=3, kernel_size=2, padding="same", activation="tanh"),
    # Pooling
    _plain("AveragePooling1D", (7, 2), pool_size=2),
    _plain("AveragePooling2D", (5, 4, 2), pool_size=2, strides=1, padding="same"),
    _plain("AveragePooling3D", (4, 3, 2, 2), pool_size=2),
    _plain("MaxPooling1D", (7, 2), pool_size=2),
    _plain("MaxPooling2D", (5, 4, 2), pool_size=2),
    _plain("MaxPooling2D", (5, 4, 2), "strides=1, same", pool_size=2, strides=1, padding="same"),
    _plain("MaxPooling2D", (7, 6, 2), "overlapping", pool_size=3, strides=2),
    _plain("MaxPooling3D", (4, 3, 2, 2), pool_size=2),
    _plain("GlobalAveragePooling1D", (5, 3)),
    _plain("GlobalAveragePooling2D", (4, 3, 3)),
    _plain("GlobalAveragePooling3D", (3, 2, 2, 3), keepdims=True),
    _plain("GlobalMaxPooling1D", (5, 3)),
    _plain("GlobalMaxPooling2D", (4, 3, 3)),
    _plain("GlobalMaxPooling3D", (3, 2, 2, 3), keepdims=True),
    _plain("AdaptiveAveragePooling1D", (7, 2), output_size=3),
    _plain("AdaptiveAveragePooling2D", (5, 4, 2), output_size=(3, 2)),
    _plain("AdaptiveAveragePooling3D", (3, 4, 3, 1), output_size=2),
    _plain("AdaptiveMaxPooling1D", (7, 2), output_size=3),
    _plain("AdaptiveMaxPooling2D", (5, 4, 2), output_size=(3, 2)),
    _plain("AdaptiveMaxPooling3D", (3, 4, 3, 1), output_size=2),
    # Recurrence
    _plain("LSTM", (4, 2), units=3),
    _plain("LSTM", (4, 2), "unroll, return_sequences", units=3, unroll=True, return_sequences=True),
    _plain("LSTM", (4, 2), "dropout", units=3, dropout=0.2, recurrent_dropout=0.2),
    _layer("LSTM", masked(lambda: layers.LSTM(3)), "masked"),
    _layer("LSTM", stateful(lambda: layers.LSTM(3, stateful=True)), "stateful"),
    _plain("GRU", (4, 2), units=3),
    _plain("GRU", (4, 2), "reset_after=False, go_backwards", units=3, reset_after=False, go_backwards=True),
    _plain("GRU", (4, 2), "unroll", units=3, unroll=True),
    _plain("SimpleRNN", (4, 2), "return_sequences", units=3, return_sequences=True),
    _plain("SimpleRNN", (4, 2), "unroll", units=3, unroll=True),
    _layer("RNN", between(lambda: layers.RNN([layers.GRUCell(3), layers.SimpleRNNCell(2)]), (4, 2)), "two cells"),
    _layer(
        "StackedRNNCells",
        between(lambda: layers.RNN(layers.StackedRNNCells([layers.LSTMCell(2), layers.LSTMCell(3)])), (4, 2)),
        "in RNN",
    ),
    _layer("LSTMCell", between(lambda: layers.RNN(layers.LSTMCell(3), unroll=True), (4, 2)), "in RNN, unroll"),
    _layer("GRUCell", between(lambda: layers.RNN(layers.GRUCell(3), unroll=True), (4, 2)), "in RNN, unroll"),
    _layer(
        "SimpleRNNCell", between(lambda: layers.RNN(layers.SimpleRNNCell(3), unroll=True), (4, 2)), "in RNN, unroll"
    ),
    _layer("Bidirectional", between(lambda: layers.Bidirectional(layers.LSTM(2, return_sequences=True)), (4, 2))),
    _plain("ConvLSTM1D", (3, 4, 2), filters=2, kernel_size=2),
    _plain("ConvLSTM2D", (3, 3, 3, 1), filters=2, kernel_size=2),
    _plain("ConvLSTM3D", (2, 3, 2, 2, 1), filters=2, kernel_size=2),
    # Noise
    _plain("AlphaDropout", (6,), rate=0.3),
    _plain("Dropout", (6,), rate=0.3),
    _plain("Dropout", (6,), "inference", mode="inference", rate=0.3),
    _plain("GaussianDropout", (6,), rate=0.3),
    _plain("GaussianNoise", (6,), stddev=0.3),
    _plain("SpatialDropout1D", (3, 4), rate=0.3),
    _plain("SpatialDropout2D", (3, 2, 4), rate=0.3),
    _plain("SpatialDropout3D", (2, 3, 2, 4), rate=0.3),
    # Shapes
    _plain("Cropping1D", (7, 2), cropping=(1, 2)),
    _plain("Cropping2D", (5, 4, 2), cropping=1),
    _plain("Cropping3D", (4, 3, 3, 2), cropping=1),
    _plain("UpSampling1D", (4, 2), size=2),
    _plain("UpSampling2D", (3, 2, 2), "nearest", size=2),
    _plain("UpSampling2D", (3, 2, 2), "bilinear", size=2, interpolation="bilinear"),
    _plain("UpSampling2D", (3, 2, 2), "bicubic", size=2, interpolation="bicubic"),
    _plain("UpSampling2D", (3, 2, 2), "lanczos3", size=2, interpolation="lanczos3"),
    _plain("UpSampling3D", (2, 3, 2, 2), size=2),
    _plain("ZeroPadding1D", (4, 2), padding=(1, 2)),
    _plain("ZeroPadding2D", (3, 2, 2), padding=1),
    _plain("ZeroPadding3D", (2, 2, 2, 2), padding=1),
    # Images
    _image("AugMix", value_range=_UNIT),
    _augmentation("AugMix", value_range=_UNIT),
    _image("AutoContrast", value_range=_UNIT),
    _image("CenterCrop", height=5, width=4),
    _image("CenterCrop", "larger than the image", height=9, width=9),
    _image("ContrastLimitedAdaptiveHistogramEqualization", value_range=_UNIT, tile_grid_size=(2, 2)),
    _image("CutMix"),
    _layer("Equalization", between(lambda: Inside(layers.Equalization(value_range=_UNIT)), _IMAGE, squash="sigmoid")),
    _layer(
        "MaxNumBoundingBoxes",
        first(lambda: _bounding_boxes, positive(N, 4, 4, 3), positive(N, 5, 4), integers(N, 5)),
        no_derivative="picks bounding boxes of the data",
    ),
    _image("MixUp", alpha=0.5),
    _layer(
        "Pipeline",
        between(lambda: layers.Pipeline([layers.RandomFlip(), layers.Rescaling(2.0, -1.0)]), _IMAGE, squash="sigmoid"),
    ),
    _image("RandAugment", value_range=_UNIT),
    _image("RandomBrightness", factor=0.2, value_range=_UNIT),
    _image("RandomColorDegeneration", factor=(0.2, 0.8), value_range=_UNIT),
    _image("RandomColorJitter", **_JITTER),
    _augmentation("RandomColorJitter", **_JITTER),
    _image("RandomContrast", factor=0.3, value_range=_UNIT),
    _image("RandomCrop", height=5, width=4),
    _augmentation("RandomCrop", height=5, width=4),
    _image("RandomElasticTransform", "bilinear", value_range=_UNIT),
    _image("RandomElasticTransform", "nearest", value_range=_UNIT, interpolation="nearest"),
    _image("RandomErasing", value_range=_UNIT),
    _image("RandomFlip"),
    _image("RandomGaussianBlur", value_range=_UNIT),
    _image("RandomGrayscale"),
    _image("RandomHue", factor=0.3, value_range=_UNIT),
    _augmentation("RandomHue", factor=0.3, value_range=_UNIT),
    _image("RandomInvert", value_range=_UNIT),
    _image("RandomPerspective", "bilinear", scale=0.5),
    _augmentation("RandomPerspective", scale=0.5),
    _image("RandomPerspective", "nearest", scale=0.5, interpolation="nearest"),
    _image("RandomPosterization", factor=4, value_range=_UNIT),
    _image("RandomRotation", "bilinear", factor=0.2),
    _augmentation("RandomRotation", factor=0.2),
    _image("RandomRotation", "nearest", factor=0.2, interpolation="nearest"),
    _image("RandomSaturation", factor=(0.3, 0.7), value_range=_UNIT),
    _augmentation("RandomSaturation", factor=(0.3, 0.7), value_range=_UNIT),
    _image("RandomSharpness", factor=(0.2, 0.8), value_range=_UNIT),
    _image("RandomShear", "bilinear", x_factor=0.3, y_factor=0.2),
    _augmentation("RandomShear", x_factor=0.3, y_factor=0.2),
    _image("RandomTranslation", "bilinear", height_factor=0.3, width_factor=0.2),
    _augmentation("RandomTranslation", height_factor=0.3, width_factor=0.2),
    _image("RandomZoom", "bilinear", height_factor=0.3),
    _augmentation("RandomZoom", height_factor=0.3),
    _image("RandomZoom", "nearest", height_factor=0.3, interpolation="nearest"),
    _image("Rescaling", scale=2.0, offset=-1.0),
    _image("Resizing", "bilinear", height=5, width=9),
    _augmentation("Resizing", height=5, width=9),
    _image("Resizing", "nearest", height=5, width=9, interpolation="nearest"),
    _image("Resizing", "bicubic", height=5, width=9, interpolation="bicubic"),
    _image("Resizing", "area", height=5, width=9, interpolation="area"),
    _image("Resizing", "bilinear, antialias", height=5, width=4, antialias=True),
    _image("Solarization", value_range=_UNIT, threshold_factor=(0.3, 0.6), addition_factor=(0.05, 0.1)),
    # Sound
    _plain("MelSpectrogram", (40,), fft_length=16, sequence_stride=8, num_mel_bins=4, sampling_rate=800),
    *(_layer("STFTSpectrogram", between(_spectrogram(mode), (20, 1)), mode) for mode in ("log", "magnitude", "real")),
    # Tables and text
    _layer(
        "CategoryEncoding",
        first(lambda: layers.CategoryEncoding(num_tokens=6), integers(N, 4)),
        no_derivative=_INTEGERS,
    ),
    _plain("Discretization", (5,), bin_boundaries=[-1.0, 0.0, 1.0], output_mode="one_hot"),
    _layer(
        "Discretization",
        between(lambda: adapted(layers.Discretization(num_bins=4, output_mode="one_hot"), normal(20, 5)), (5,)),
        "adapted",
    ),
    _layer(
        "HashedCrossing",
        first(lambda: layers.HashedCrossing(num_bins=5, output_mode="one_hot"), integers(N, 1), integers(N, 1, high=3)),
        no_derivative=_INTEGERS,
    ),
    _layer(
        "Hashing",
        first(lambda: layers.Hashing(num_bins=5, output_mode="multi_hot"), integers(N, 4)),
        no_derivative=_INTEGERS,
    ),
    _layer(
        "IntegerLookup",
        first(lambda: layers.IntegerLookup(vocabulary=[1, 2, 4], output_mode="multi_hot"), integers(N, 4)),
        no_derivative=_INTEGERS,
    ),
    *(_adapted_lookup(mode) for mode in ("multi_hot", "tf_idf")),
    _layer(
        "StringLookup",
        first(lambda: layers.StringLookup(vocabulary=_VOCABULARY, output_mode="multi_hot"), words(N, 4)),
        no_derivative=_STRINGS,
    ),
    _layer(
        "StringLookup",
        first(lambda: adapted(layers.StringLookup(output_mode="multi_hot"), words(20, 4)), words(N, 4)),
        "adapted",
        no_derivative=_STRINGS,
    ),
    _layer(
        "TextVectorization",
        first(lambda: layers.TextVectorization(vocabulary=_VOCABULARY, output_mode="multi_hot"), words(N, 1)),
        no_derivative=_STRINGS,
    ),
    _layer(
        "TextVectorization",
        first(lambda: adapted(layers.TextVectorization(output_mode="tf_idf"), words(20, 1)), words(N, 1)),
        "adapted",
        no_derivative=_STRINGS,
    ),
]


def _activation(name: str, function: Any = None, variant: str = "", covers: tuple[str, ...] = ()) -> Case:
    build = between(lambda: layers.Activation(function or getattr(activations, name)), (6,))
    return Case("activations", name, build, variant, "", covers)


_ACTIVATIONS: list[Case] = [
    *(
        _activation(name)
        for name in (
            "celu",
            "elu",
            "exponential",
            "gelu",
            "hard_shrink",
            "hard_sigmoid",
            "hard_silu",
            "hard_tanh",
            "leaky_relu",
            "linear",
            "log_sigmoid",
            "log_softmax",
            "mish",
            "relu",
            "relu6",
            "selu",
            "sigmoid",
            "silu",
            "soft_shrink",
            "softmax",
            "softplus",
            "softsign",
            "sparse_plus",
            "sparse_sigmoid",
            "sparsemax",
            "squareplus",
            "tanh",
            "tanh_shrink",
        )
    ),
    Case("activations", "gelu", between(lambda: lambda x: activations.gelu(x, approximate=True), (6,)), "approximate"),
    Case("activations", "glu", between(lambda: activations.glu, (6,))),
    Case("activations", "threshold", between(lambda: lambda x: activations.threshold(x, 0.1, 0.2), (6,))),
    Case("activations", "get", between(lambda: layers.Activation(activations.get("tanh")), (6,))),
    Case(
        "activations",
        "deserialize",
        between(lambda: layers.Activation(_again(activations, activations.gelu)), (6,)),
        covers=("serialize",),
    ),
]


def _loss(name: str, targets: Any, activation: Any = None, variant: str = "", **options: Any) -> Case:
    around = {key: options.pop(key) for key in ("shape", "batch_size") if key in options}
    return Case("losses", name, under(lambda: getattr(losses, name)(**options), targets, activation, **around), variant)


def _circle(batch_size: int, variant: str) -> Case:
    """A label that is once in a batch has no pair, and the second derivative is NaN (3 examples, 2 labels)."""
    labels, unit = np.array([0, 1, 0, 1, 0, 1, 0], "int32"), layers.UnitNormalization
    return _loss("Circle", labels, unit, variant, shape=(4,), batch_size=batch_size, gamma=2.0)


_LOSSES: list[Case] = [
    _loss("BinaryCrossentropy", bits(N, 3), "sigmoid", "probabilities"),
    _loss(
        "BinaryCrossentropy", bits(N, 3), None, "from_logits, label_smoothing", from_logits=True, label_smoothing=0.1
    ),
    _loss("BinaryFocalCrossentropy", bits(N, 3), "sigmoid", apply_class_balancing=True),
    _loss("BinaryFocalCrossentropy", bits(N, 3), None, "from_logits", from_logits=True),
    _loss("CTC", random(11).integers(1, 4, (N, 2)).astype("int32"), None, shape=(6, 4)),
    _loss("CategoricalCrossentropy", probabilities(N, 4), "softmax", "probabilities"),
    _loss(
        "CategoricalCrossentropy",
        one_hot(N, depth=4),
        None,
        "from_logits, label_smoothing",
        from_logits=True,
        label_smoothing=0.1,
    ),
    _loss("CategoricalFocalCrossentropy", one_hot(N, depth=4), "softmax"),
    _loss("CategoricalGeneralizedCrossEntropy", random(12).integers(0, 4, N).astype("int32"), "softmax", shape=(4,)),
    _loss("CategoricalHinge", one_hot(N, depth=4), None),
    _circle(N, "each label twice or more in a batch"),
    _circle(3, "a label once in a batch"),
    _loss("CosineSimilarity", normal(N, 4)),
    _loss("Dice", bits(N, 3, 2), "sigmoid"),
    _loss("Dice", bits(N, 3, 2), "sigmoid", "axis", axis=(1,)),
    _loss("Hinge", signs(N, 3)),
    _loss("Huber", normal(N, 3), None, delta=0.7),
    _loss("KLDivergence", probabilities(N, 4), "softmax"),
    _loss("LogCosh", normal(N, 3)),
    Case("losses", "Loss", under(QuarticLoss, normal(N, 3)), "a subclass"),
    _loss("MeanAbsoluteError", normal(N, 3)),
    _loss("MeanAbsolutePercentageError", positive(N, 3)),
    _loss("MeanSquaredError", normal(N, 3)),
    _loss("MeanSquaredError", normal(N, 3), None, "reduction='sum'", reduction="sum"),
    _loss("MeanSquaredLogarithmicError", positive(N, 3), "softplus"),
    _loss("Poisson", positive(N, 3), "softplus"),
    _loss("SparseCategoricalCrossentropy", random(14).integers(0, 4, N), "softmax", "probabilities", shape=(4,)),
    _loss(
        "SparseCategoricalCrossentropy",
        random(14).integers(0, 4, (N, 2)),
        None,
        "from_logits, ignore_class",
        shape=(2, 4),
        from_logits=True,
        ignore_class=3,
    ),
    _loss("SquaredHinge", signs(N, 3)),
    _loss("Tversky", bits(N, 3, 2), "sigmoid", alpha=0.3, beta=0.7),
    Case("losses", "get", under(lambda: losses.get("log_cosh"), normal(N, 3))),
    Case(
        "losses", "deserialize", under(lambda: _again(losses, losses.Huber(0.7)), normal(N, 3)), covers=("serialize",)
    ),
]
