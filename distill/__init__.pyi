from .export.student import ExportedStudent, load_student

__all__ = ["ExportedStudent", "load_student"]
