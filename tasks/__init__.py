"""Policy: one stage a file, one task each. TensorFlow is imported when a task first needs it, while Prefect's server starts."""
