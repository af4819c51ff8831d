"""Trackers of experiments, which get the numbers, spectra and pages: TensorBoard, Weights & Biases, MLflow."""
