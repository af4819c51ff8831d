"""Reports from records: JSON, terminal and HTML. No TensorFlow."""
