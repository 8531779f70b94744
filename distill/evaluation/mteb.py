"""``distill mteb``: score an exported student of texts on the Massive Text Embedding Benchmark with the library mteb."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn

from cache_tools import ConfigError, first_line, stay_local
from distill.export.student import load_student

Array = np.ndarray[Any, Any]


# The suite mteb-small: one or two of each type of MTEB(eng, v2), so that names, data and scores are the leaderboard's. They
# have few texts, about 70,000 in all instead of millions, from different domains. Summarization is left out: its one task
# has 100 documents, and its score hardly separates good encoders.
SMALL = (
    *("Banking77Classification", "TweetSentimentExtractionClassification"),  # many classes of intent; three of mood
    *("StackExchangeClustering.v2", "ArXivHierarchicalClusteringS2S"),  # titles of questions; of papers
    "TwitterSemEval2015",  # pair classification
    *("BIOSSES", "STSBenchmark"),  # similarity: biomedical; news, captions and forums
    "AskUbuntuDupQuestions",  # reranking
    "ArguAna",  # retrieval: 8,674 documents, the smallest corpus of all
)


class MtebEncoder:
    """An exported student as an encoder of mteb 2: ``mteb.evaluate(MtebEncoder("student"), tasks)``.

    It follows ``mteb.EncoderProtocol`` and adds no prompt to a text. Students refuse a blank text, and mteb needs a vector
    for every text: a blank one is read as a full stop.

    Args:
        student: the folder that ``distill export`` made, of a student that reads texts.
        device: ``cpu``, ``cuda``, ...; by default the GPU when there is one.

    Attributes:
        mteb_model_meta: named ``quorum-distill/FOLDER``; its revision is a hash of everything that decides the embeddings.

    Raises:
        ConfigError: when there is no such export, it reads no texts, or mteb is not installed.
    """

    def __init__(self, student: str | Path, device: str | None = None):
        engine()
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        self.student = load_student(student, device)
        reader = self.student.inputs[self.student.column("text")]
        config, network = self.student.config, self.student.network.module
        facts = json.dumps([config["student"], config["inputs"], config["weights_sha256"]], sort_keys=True)
        tables = {module.weight for module in network.modules() if isinstance(module, nn.Embedding)}
        weights = list(network.parameters())
        unknown = ("release_date", "languages", "license", "open_weights", "public_training_code", "public_training_data")
        self.mteb_model_meta = ModelMeta(
            **dict.fromkeys(unknown),
            loader=None,  # mteb cannot make it from its name
            name=f"quorum-distill/{Path(student).resolve().name}",
            revision=hashlib.sha256(facts.encode()).hexdigest()[:40],
            n_parameters=sum(weight.numel() for weight in weights),
            n_embedding_parameters=sum(table.numel() for table in tables),
            memory_usage_mb=sum(weight.numel() * weight.element_size() for weight in weights) / 1024**2,
            max_tokens=getattr(reader, "max_length", None),
            embed_dim=self.student.dim,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False,
            training_datasets=None,  # unknown: mteb does not count it as zero-shot
        )

    def encode(self, inputs: Iterable[dict[str, Any]], *, batch_size: int | None = None, **_: Any) -> Array:
        """The embedding of every text of mteb's batches, (texts, dim).

        Args:
            inputs: batches with a list of texts under ``text``.
            batch_size: texts at a time.
        """
        texts = [text if text.strip() else "." for batch in inputs for text in batch["text"]]
        return np.asarray(self.student.embed(texts, "text", batch_size))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of all pairs, (first, second)."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of corresponding rows, (rows,)."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def mteb(student: Path, tasks: list[str] | None = None, out: Path = Path("runs/mteb"), device: str | None = None) -> None:
    """Score an exported student of texts on tasks of MTEB, and show the main score of each.

    Args:
        student: the folder that ``distill export`` made.
        tasks: names of tasks in mteb; their English part is run; by default those of the suite mteb-small.
        out: mteb writes its files of results to OUT/results; a task with a result there is not run again.
        device: cpu, cuda, ...; by default the GPU when there is one.

    Raises:
        ConfigError: when mteb is not installed or knows no such task, a data set is missing, or the student reads no texts.
    """
    encoder = MtebEncoder(student, device)
    chosen = [named(name) for name in tasks or SMALL]
    load(chosen)
    results = engine().evaluate(
        encoder,
        chosen,
        cache=engine().ResultCache(out),
        co2_tracker=False,
        encode_kwargs={"batch_size": encoder.student.rows},
    )
    scores = {result.task_name: result.get_score() for result in results.task_results}
    shown = Table("task", "type", "score", "", title=f"{student}: MTEB")
    for task in chosen:
        facts = task.metadata
        shown.add_row(facts.name, facts.type, facts.main_score, f"{scores[facts.name]:.3f}")
    shown.add_row("mean", "", "", f"{np.mean(list(scores.values())):.3f}")
    Console().print(shown)
    meta = encoder.mteb_model_meta
    Console().print(f"written: {out / 'results' / meta.model_name_as_path() / meta.revision}", soft_wrap=True)


def engine() -> Any:
    """The library mteb.

    Raises:
        ConfigError: when it is not installed.
    """
    stay_local()
    try:
        import mteb as library
    except ImportError as error:
        raise ConfigError(f"mteb cannot be imported ({error}): pip install 'quorum-distill[eval]'") from None
    return library


def named(name: str) -> Any:
    """A task of mteb by its name, in English.

    Raises:
        ConfigError: when there is none; a similar name is suggested.
    """
    try:
        return engine().get_task(name, languages=["eng"])
    except KeyError as error:
        raise ConfigError(f"{error.args[0].removeprefix('KeyError: ')} The tasks: `mteb available-tasks`") from None


def load(tasks: Sequence[Any]) -> None:
    """Load the data of all tasks before the first one runs.

    Raises:
        ConfigError: when data sets are neither in the local cache nor on the hub; it names them.
    """
    lacking: dict[str, str] = {}
    reason = ""
    for task in tasks:
        try:
            task.load_data()
        except (OSError, ValueError, LookupError) as error:  # as cache_tools reads data sets
            lacking[task.metadata.name] = task.metadata.dataset["path"]
            reason = reason or first_line(error)
    if lacking:
        sets = ", ".join(f"{name} ({path})" for name, path in lacking.items())
        code = f"import mteb; [mteb.get_task(each).load_data() for each in {list(lacking)}]"
        raise ConfigError(
            f"the data of {len(lacking)} of {len(tasks)} tasks is neither here nor can the hub be read: {sets}. Name "
            f'others with --tasks, or load these once on a machine with the hub (`python -c "{code}"`) and copy its '
            f"~/.cache/huggingface here, or where HF_HOME points; HF_HUB_OFFLINE=1 then keeps off the network. ({reason})"
        )
