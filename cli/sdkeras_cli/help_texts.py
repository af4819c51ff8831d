"""(Help, placeholder) of options whose fields have no metadata of their own yet."""

HELP = {
    "batch_size": ("Of training; default 32, or the data set's own.", ""),
    "learning_rate": (
        "In place of the one in the file: a number, or of its schedule the peak or mean so far, or that of step N.",
        "F|peak|mean|step:N",
    ),
    "loss": (
        "Replaces the compiled one: NAME[:FIELD[=VALUE]...] of a Keras loss, as huber:delta=0.1, or FILE.py:FUNCTION "
        "or MODULE:FUNCTION for a loss_fn(model, batch).",
        "LOSS",
    ),
    "class_weight": (
        "fit's class_weight, which no file holds: 0=1.0,1=9.0; other classes weigh 1.",
        "CLASS=W,...",
    ),
    "params": ("Analyse only the variables whose path this finds.", "REGEX"),
    "samples": ("Samples for the data-set Hessian.", ""),
    "mode": ("Of dropout and batch normalization.", ""),
    "map": (
        "auto: the optimizer's own step where it is known; hessian: |1 - eta*alpha|; full: singular values of the "
        "whole step of any optimizer.",
        "",
    ),
    "estimators": ("Estimator to use; repeatable.", ""),
    "settings": ("A setting of an estimator.", "NAME.FIELD=VALUE"),
    "exact": ("Exact spectra of minibatches as well (small models).", ""),
    "exact_minibatches": ("How many (with --exact or without); adaptive by default.", ""),
    "tolerance": ("Half-width over the codimension.", ""),
    "max_hvps": ("Budget of products for all stages; required steps run anyway.", ""),
    "time_limit": ("Budget of time for all stages, likewise.", "SECONDS"),
    "memory_gb": ("Memory for bases and dense matrices.", "GB"),
    "allow_unverified": ("Go on with an operator that failed its verification.", ""),
    "per_layer": ("Largest eigenvalue, trace and codimension of each layer's block.", ""),
    "lyapunov": ("K Lyapunov exponents along training from here as well.", "K"),
    "lyapunov_steps": ("Averaged over.", ""),
    "lyapunov_transient": ("Before.", ""),
    "snapshots": ("The supremum over N snapshots of training as well.", "N"),
    "every": ("Training steps between two snapshots.", "M"),
    "bound_inputs": ("An input of the bounds; repeatable.", "NAME=VALUE"),
    "estimate_bound_inputs": ("Estimate loss_bound and lipschitz where not given.", ""),
}
