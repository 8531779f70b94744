"""A student as a transformer of scikit-learn."""

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from distill.export.student import ExportedStudent, load_student


class StudentTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Turns items into a student's embeddings inside a pipeline of scikit-learn; nothing is trained in ``fit``.

    Args:
        student: a folder that ``distill export`` made, the name of a released student, or a loaded student.
        modality: of the items, for a student that reads several.
        column: of a data frame of several columns; ``smiles``, ``text`` or ``path`` when not given.
        bad: an item that cannot be used is an ``error``, or a row of ``nan``, for an imputer or a model that takes it.
        batch_size: items at a time.
        device: as for :func:`distill.load_student`.

    Attributes:
        student_: the loaded student, after ``fit``.

    Example:
        >>> from sklearn.linear_model import Ridge
        >>> from sklearn.pipeline import make_pipeline
        >>> model = make_pipeline(StudentTransformer("tests/fixtures/v01/student", device="cpu"), Ridge())
        >>> model.fit(["CCO", "CCN", "CCC"], [1.0, 2.0, 3.0]).predict(["CCO"]).shape
        (1,)
    """

    def __init__(
        self,
        student: str | Path | ExportedStudent,
        modality: str | None = None,
        column: str | None = None,
        bad: Literal["error", "nan"] = "error",
        batch_size: int | None = None,
        device: str | None = None,
    ):
        self.student, self.modality, self.column = student, modality, column
        self.bad, self.batch_size, self.device = bad, batch_size, device

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803 - scikit-learn's name
        """Load the student."""
        student = self.student
        self.student_ = student if isinstance(student, ExportedStudent) else load_student(student, self.device)
        return self

    def transform(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803 - scikit-learn's name
        """The embedding of every item, (items, dim), float32.

        Args:
            X: a list, array or Series of items, (items,) or (items, 1); or a data frame.

        Raises:
            CorpusError: on an item that cannot be used, unless ``bad`` is ``nan``.
        """
        if not hasattr(self, "student_"):
            self.fit(X)
        if len(getattr(X, "shape", ())) == 2 and X.shape[1] == 1:  # as a ColumnTransformer gives one column
            X = np.asarray(X, object)[:, 0]  # noqa: N806
        out: np.ndarray[Any, Any] = self.student_.embed(
            X, self.modality, self.batch_size, self.bad, self.column, output="numpy"
        )
        return out

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray[Any, Any]:
        """The names of the columns: ``embedding_0``, ``embedding_1`` ..."""
        return np.array([f"embedding_{number}" for number in range(self.student_.dim)], object)
