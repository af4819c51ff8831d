"""Parts of an answer that every measurement of a subject writes alike."""

from __future__ import annotations

import numpy as np

from sdkeras.operators.base import Array
from sdkeras.provenance import loss_name
from sdkeras.reporting.schema import ModelInfo, SpectrumSummary
from sdkeras.subject import Subject

_MAX_NODES = 2000


def model_info(subject: Subject, product_mode: str) -> ModelInfo:
    """The model and its loss."""
    trainable = subject.model.trainable_variables
    return ModelInfo(
        name=str(subject.model.name),
        num_parameters=int(sum(np.prod(v.shape, dtype=np.int64) for v in trainable)),
        num_trainable_analysed=subject.loss.size,
        mode=subject.options.mode,
        loss=loss_name(subject.model.loss),
        unconnected=subject.loss.engine(product_mode).unconnected,
    )


def compressed(nodes: Array, weights: Array, operator: str) -> SpectrumSummary:
    """At most 2,000 nodes: neighbours of about equal mass share are merged into their mean."""
    if len(nodes) > _MAX_NODES:
        edges = np.unique(np.linspace(0, len(nodes), _MAX_NODES + 1).astype(int)[:-1])
        mass = np.add.reduceat(weights, edges)
        moment = np.add.reduceat(weights * nodes, edges)
        plain = np.add.reduceat(nodes, edges) / np.diff(np.append(edges, len(nodes)))
        nodes = np.where(mass > 0, moment / np.where(mass > 0, mass, 1.0), plain)
        weights = mass
    return SpectrumSummary(np.asarray(nodes, np.float64), np.asarray(weights, np.float64), operator)
