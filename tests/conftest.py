"""What holds for all tests."""

import gc


def pytest_collection_finish() -> None:
    """Take what the imports have made out of every later garbage collection: Keras asks for one a model, and each took 0.4 s."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter take it apart in the end."""
    gc.unfreeze()
