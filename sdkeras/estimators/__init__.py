"""The plugin contract: kinds of estimators, how they are found, and how one is selected."""
