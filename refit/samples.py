"""The two small data sets that scikit-learn ships, as Arrow batches: sources of the shipped jobs, and examples of a python source.

Source: scikit-learn's bundled copies of the UCI sets "Optical Recognition of Handwritten Digits" (the test set, 1,797
images, doi:10.24432/C50P49) and "Breast Cancer Wisconsin (Diagnostic)" (569 rows, doi:10.24432/C5DW2B).
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa


def read_digits() -> Iterator[pa.RecordBatch]:
    """Handwritten digits: ``image`` uint8 ``[8, 8, 1]`` with values 0 to 16, ``digit`` int64 0 to 9; 1,797 rows."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.ascontiguousarray(bunch.images[..., np.newaxis].astype(np.uint8))
    yield pa.RecordBatch.from_arrays(
        [pa.FixedShapeTensorArray.from_numpy_ndarray(images), pa.array(bunch.target, pa.int64())], names=["image", "digit"]
    )


def read_breast_cancer() -> Iterator[pa.RecordBatch]:
    """Cell nuclei: 30 float64 measurements, ``diagnosis`` "benign" or "malignant"; 569 rows."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    columns = [pa.array(values) for values in bunch.data.T]
    diagnosis = pa.array(bunch.target_names[bunch.target].tolist())
    yield pa.RecordBatch.from_arrays([*columns, diagnosis], names=[*(n.replace(" ", "_") for n in bunch.feature_names), "diagnosis"])
