"""The training stage: one student under a head per teacher, then probes; and the student afterwards."""

from distill.export.student import ExportedStudent, load_student

__all__ = ["ExportedStudent", "load_student"]
