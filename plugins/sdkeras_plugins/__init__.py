"""The built-in estimators; they come in by the same entry points as anybody's."""
