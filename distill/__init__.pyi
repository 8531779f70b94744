from .api.fit import FittedStudent, evaluate, fit, resume
from .export.student import ExportedStudent, load_student
from .export.table import embed
from .export.transformer import StudentTransformer

__version__: str

__all__ = [
    "ExportedStudent",
    "FittedStudent",
    "StudentTransformer",
    "embed",
    "evaluate",
    "fit",
    "load_student",
    "resume",
]
