from .api.fit import FittedStudent, evaluate, fit, resume
from .export.student import ExportedStudent, load_student

__version__: str

__all__ = ["ExportedStudent", "FittedStudent", "evaluate", "fit", "load_student", "resume"]
