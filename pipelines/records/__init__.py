"""Where people look at runs: MLflow, Weights & Biases, TensorBoard."""
