"""One training step of any Keras optimizer as a map of weights and slots."""
