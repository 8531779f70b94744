"""Specialists: teachers whose network was tuned on the labels of a task; their logits are the embedding."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache_tools.errors import TeacherError
from cache_tools.format.files import write_file
from cache_tools.hub import read_safetensors, weights_file
from cache_tools.producer import class_path
from cache_tools.teachers.base import Teacher, Tunable
from cache_tools.teachers.network import weights_sha256

NETWORK, CLASSIFIER = "network.", "classifier."  # how the names of their tensors begin


class Specialist(Teacher):
    """The logits of a network that ``distill specialise`` tuned, (batch, classes), float32.

    Args:
        teacher: the teacher that was tuned, with its weights before; the specialist uses its preprocessing.
        weights: the safetensors file that ``distill specialise`` wrote; environment variables are expanded.

    Raises:
        TeacherError: when the file is missing or lacks tensors, or when another teacher was tuned.
    """

    def __init__(self, teacher: Teacher, weights: str):
        self.teacher = as_tunable(teacher)
        self.weights = self.init_args["weights"] = str(weights_file(weights, "`distill specialise` makes such a file"))
        self.modality = teacher.modality  # type: ignore[misc]  # a fact of the instance here
        self.python_bound, self.on_device = teacher.python_bound, teacher.on_device  # type: ignore[misc]

    def load(self, device: str) -> None:
        state, facts = read_safetensors(Path(self.weights))
        self.teacher.load(device)
        expected = teacher_facts(self.teacher)
        if wrong := [key for key in expected if facts.get(key) != expected[key]]:
            raise TeacherError(
                f"{self.weights} was tuned from a teacher with {wrong[0]} {facts.get(wrong[0])}, this one has "
                f"{expected[wrong[0]]}: name the teacher that `distill specialise` was given, or tune this one"
            )
        try:
            self.teacher.module.load_state_dict(_part(state, NETWORK))
            classifier = _part(state, CLASSIFIER)
            self.dim, width = classifier["weight"].shape
            self.classifier = nn.Linear(width, self.dim).requires_grad_(False).to(device)
            self.classifier.load_state_dict(classifier)
        except (RuntimeError, KeyError, ValueError) as error:  # tensors that lack, or have another shape
            reason = " ".join(str(error).split())[:200]
            raise TeacherError(
                f"{self.weights} does not fit {class_path(self.teacher)}: {reason}: make it again with `distill specialise`"
            ) from None

    def prepare(self, item: bytes) -> Any:
        return self.teacher.prepare(item)

    def embed(self, items: Sequence[Any]) -> Any:
        embedding = torch.as_tensor(self.teacher.embed(items), device=self.classifier.weight.device)  # (batch, dim)
        with torch.inference_mode():
            return self.classifier(embedding.float()).cpu()

    def fingerprint(self) -> dict[str, Any]:
        tuned = nn.ModuleList([self.teacher.module, self.classifier])  # not the file: its metadata have no fixed order
        return {
            "class_path": class_path(self),
            "teacher": self.teacher.fingerprint(),
            "weights_sha256": weights_sha256(tuned),
        }


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def as_tunable(teacher: Teacher) -> Tunable:
    """The teacher, when it has a network that can be tuned.

    Raises:
        TeacherError: when it has none.
    """
    if isinstance(teacher, Tunable):
        return teacher
    raise TeacherError(
        f"{class_path(teacher)} has no network that can be tuned: expected a cache_tools.Tunable, such as "
        "those of cache_tools.teachers.gnn, .image and HfTextTeacher"
    )


def teacher_facts(teacher: Tunable) -> dict[str, str]:
    """What a specialist's file says about the teacher that was tuned; load that teacher first, and tune it later."""
    return {"teacher": class_path(teacher), "teacher_sha256": weights_sha256(teacher.module)}


def write_specialist(
    path: Path, network: Mapping[str, Tensor], classifier: Mapping[str, Tensor], facts: Mapping[str, str]
) -> None:
    """Write a specialist's file; a writer that is killed leaves no part of it.

    Args:
        path: of the file.
        network: the state of the teacher's module.
        classifier: ``weight`` (classes, dim) and ``bias`` (classes,).
        facts: those of :func:`teacher_facts` and others, for people.
    """
    from safetensors.torch import save

    named = {NETWORK + name: tensor for name, tensor in network.items()}
    named |= {CLASSIFIER + name: tensor for name, tensor in classifier.items()}
    plain = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, save(plain, dict(facts)))
