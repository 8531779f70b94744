from .export.student import ExportedStudent, load_student

__version__: str

__all__ = ["ExportedStudent", "load_student"]
