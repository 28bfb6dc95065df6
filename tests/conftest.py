"""What holds for all tests."""

import gc
import os

# Tests of flows are collected with the others, and importing Prefect there sets up loggers that warn outside of a flow.
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"


def pytest_collection_finish() -> None:
    """Take what the imports have made out of every later garbage collection: Keras asks for one a model, and each took 0.4 s."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter take it apart in the end."""
    gc.unfreeze()
