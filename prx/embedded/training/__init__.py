"""Train the embedded weights from seeds."""
