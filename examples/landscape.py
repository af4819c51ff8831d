"""Critical rates, landscapes and worst cases of a net on digits, after three trainings and once rescaled.

A net of 32 ReLU units after SGD with small and with large batches and after Adam; and the first of these with layer 1
times 4 and layer 2 divided by 4, which is the same function. For each the largest eigenvalue, the critical sharpness
along the next update, how far the quadratic model holds along the top eigenvector, and the worst increase of the loss
within a ball and within an adaptive one.

    python examples/landscape.py [--results JSON]
"""

import argparse
from pathlib import Path

import keras
from result_files import markdown, save

import sdkeras
from sdkeras.datasets import load_digits

RHO, ADAPTIVE_RHO, SCALE = 0.05, 0.5, 4.0


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(32, "relu")
    return keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), hidden, keras.layers.Dense(10)])


def compiled(model: keras.Model, optimizer: object) -> keras.Model:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def trained(optimizer: object, batch_size: int, epochs: int) -> keras.Model:
    model = compiled(net(), optimizer)
    model.fit(*load_digits(), batch_size=batch_size, epochs=epochs, verbose=0)
    return model


def rescaled(model: keras.Model) -> keras.Model:
    """The same function: ReLU passes a positive factor on."""
    copy = compiled(net(), keras.optimizers.SGD(float(model.optimizer.learning_rate)))
    first, first_bias, second, second_bias = model.get_weights()
    copy.set_weights([SCALE * first, SCALE * first_bias, second / SCALE, second_bias])
    copy.optimizer.build(copy.trainable_variables)
    return copy


def measured(name: str, model: keras.Model, batch_size: int) -> dict:
    data = load_digits()
    around = sdkeras.landscape(model, data, batch_size=batch_size, rho=RHO, adaptive_rho=ADAPTIVE_RHO)
    step = sdkeras.critical(model, data, batch_size=batch_size)
    print(name, step, around, sep="\n\n", flush=True)
    (axis,), (plain, adaptive) = around.landscape.axes, around.worst_case
    return {
        "training": name,
        "loss": around.landscape.loss,
        "sharpness": axis.curvature,
        "critical_sharpness": step.critical.sharpness.value,
        "ratio": step.critical.ratio.value,
        "num_losses": step.critical.num_evaluations,
        "quadratic_to": min(around.landscape.quadratic_to),
        "drawn_to": float(axis.coordinates[-1]),
        "plain": plain.increase,
        "plain_second_order": plain.second_order,
        "adaptive": adaptive.increase,
        "adaptive_second_order": adaptive.second_order,
    }


COLUMNS = {
    "training": "{training}",
    "loss": "{loss:.4f}",
    "largest eigenvalue": "{sharpness:.3f}",
    "critical sharpness": "{critical_sharpness:.3f}",
    "ratio to the critical rate": "{ratio:.3f}",
}
BALLS = {
    "training": "{training}",
    "quadratic model holds to": "{quadratic_to:.3f} of {drawn_to:.3f}",
    "worst increase": "{plain:.4f}",
    "second order": "{plain_second_order:.4f}",
    "adaptive": "{adaptive:.4f}",
    "its second order": "{adaptive_second_order:.4f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Critical rates, landscapes and worst cases of a net on digits.")
    parser.add_argument("--results", type=Path, metavar="JSON", help="save the numbers of the tables there")
    options = parser.parse_args()
    optimizers = keras.optimizers
    small = trained(optimizers.SGD(0.3), 16, 8)
    rows = [
        measured("SGD, batches of 16", small, 16),
        measured("the same net, rescaled", rescaled(small), 16),
        measured("SGD, batches of 512", trained(optimizers.SGD(0.3), 512, 200), 512),
        measured("Adam, batches of 64", trained(optimizers.Adam(0.003), 64, 20), 64),
    ]
    print(markdown(rows, COLUMNS), "", markdown(rows, BALLS), sep="\n")
    if options.results is not None:
        along = ("training", "loss", "sharpness", "critical_sharpness", "ratio")
        within = ("training", "quadratic_to", "drawn_to", "plain", "plain_second_order", "adaptive")
        tables = [
            [{key: row[key] for key in keys} for row in rows] for keys in (along, (*within, "adaptive_second_order"))
        ]
        counts = [row["num_losses"] for row in rows]
        settings = {"rho": RHO, "adaptive_rho": ADAPTIVE_RHO, "scale": SCALE, "num_losses": counts}
        save(options.results, *tables, command="python examples/landscape.py", settings=settings)


if __name__ == "__main__":
    main()
