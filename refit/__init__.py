"""The work of refit as plain typed functions: no Prefect here, and no TensorFlow until something is fitted or scored."""

__version__ = "0.1.0"
