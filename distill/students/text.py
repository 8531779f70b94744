"""Students of texts."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.nn.utils.rnn import pad_sequence

from cache_tools import (
    UNREADABLE,
    ConfigError,
    Featuriser,
    Ragged,
    Teacher,
    TextPooling,
    above_zero,
    create_network,
    import_class,
    pool_tokens,
    stay_local,
)
from distill.students.base import LARGEST, Student, Traceable
from distill.students.rows import RowTable, SharedEmbedding, commonest_rows, first_rows, shared_rows

ENCODER = "cache_tools.teachers.text.HfTextTeacher"

COMMON = 1e-3  # a token of this share weighs half

COUNTED = 100_000  # texts, for how frequent each token is


class TokenStudent(Student):
    """Reads token ids. A subclass also computes embeddings of padded ids, by which it is traced.

    Attributes:
        vocabulary: number of tokens that it knows.
        longest: the most tokens of a text that it reads; None for any number.
        kept: tokens that have a row of their own in its table, the commonest ones of the corpus; None for all.
    """

    input = "tokens"
    enlarged: ClassVar[str]  # what to set for a student of more tokens
    vocabulary: int
    longest: int | None = None
    kept: int | None = None

    @abstractmethod
    def encode_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The embedding (batch, dim) of token ids and a mask that is 0 for padding, else 1, both (batch, tokens)."""

    def traceable(self, featuriser: Featuriser) -> Traceable:
        """This student as torch.export can trace it: token ids and a mask, both (batch, tokens), to (batch, dim)."""
        from torch.export import Dim

        ids = torch.full((2, 7), self.vocabulary - 1)
        sizes = {0: Dim("batch", min=1, max=LARGEST), 1: Dim("tokens", min=1, max=min(self.longest or LARGEST, LARGEST))}
        return Traceable(_PaddedEncoder(self), (ids, torch.ones_like(ids)), (sizes, sizes), _ids_and_mask)

    def _keep(self, kept: int | None) -> None:
        """Take ``kept``, or refuse it."""
        if kept is not None and not 0 < kept < self.vocabulary:
            raise ConfigError(
                f"kept is {kept}, expected a number of tokens from 1 to {self.vocabulary - 1}: the student knows "
                f"{self.vocabulary}; leave kept out for a row for each of them"
            )
        self.kept = kept

    def _check(self, tokens: Ragged) -> None:
        """Refuse tokens and lengths that it does not know."""
        if tokens.values.device.type != "cpu":  # the check would make the host wait; there CUDA reports the error
            return
        if (largest := int(tokens.values.max())) >= self.vocabulary:
            raise ConfigError(
                f"the student knows {self.vocabulary} tokens, its input has token {largest}: "
                f"give the input column the student's own tokenizer, or {self.enlarged}"
            )
        if self.longest and tokens.longest > self.longest:
            raise ConfigError(
                f"the student reads {self.longest} tokens at most, its input has {tokens.longest}: lower max_length"
            )


class StaticStudent(TokenStudent):
    """A vector and a weight per token, both learnt: a text is the weighted mean of its tokens' vectors.

    It reads no order and no context, and takes microseconds per text. A token's weight is the sigmoid of a learnt number,
    which begins at 0, so that training begins at the plain mean. SIF weights a / (a + p), where p is how frequent a token
    is, are the sigmoid of log(a / p) (Arora et al., ICLR 2017).

    With ``start``, a fit begins as model2vec's students are made: the vectors are the principal components of what an
    encoder makes of each token alone, and the weights are SIF weights by how frequent each token is in the corpus.

    Args:
        vocabulary: number of tokens of the tokenizer that made the input column.
        width: of a token's vector.
        norm: normalise the mean (LayerNorm).
        dim: width of the embedding, by a linear map; ``width`` when not given.
        start: an encoder of transformers whose tokenizer made the input column: a hub name, a folder that
            ``save_pretrained`` made, or ``package:NAME/FOLDER``. Random vectors when not given.
        kept: only so many of the corpus's commonest tokens have a vector and a weight of their own; all others share one of
            each, which begins as their mean by how frequent they are. All have their own when not given.

    Raises:
        ConfigError: when a size is not above 0, or ``kept`` not below ``vocabulary``.
    """

    enlarged = "set vocabulary to its number of tokens"
    row_of: Tensor | None  # token -> row, int32 (vocabulary,); None where each has its own
    gains_from_bf16 = False  # it reads vectors and adds them, and hardly multiplies

    def __init__(
        self,
        vocabulary: int,
        width: int = 256,
        norm: bool = False,
        dim: int | None = None,
        start: str | None = None,
        kept: int | None = None,
    ):
        super().__init__()
        self.dim, self.vocabulary = width if dim is None else dim, vocabulary
        above_zero("a StaticStudent", vocabulary=vocabulary, width=width, dim=self.dim)
        self._keep(kept)
        rows = vocabulary if kept is None else kept + 1
        self.vectors, self.logits = RowTable(rows, width), RowTable(rows, 1)
        self.register_buffer("row_of", None if kept is None else first_rows(vocabulary, kept))
        nn.init.zeros_(self.logits.weight)
        self.start = start
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.project = nn.Identity() if self.dim == width else nn.Linear(width, self.dim)

    @property
    def widths(self) -> list[int]:
        return [self.dim]

    def embeddings(self, rows: dict[str, Ragged]) -> list[Tensor]:
        tokens = rows["tokens"]
        self._check(tokens)
        ids, counts = self._rows(tokens.values.long()), tokens.counts
        weights = self.logits.each(ids).squeeze(1).sigmoid()  # (tokens,)
        first = counts.cumsum(0) - counts
        sums = self.vectors(ids, first, weights.to(self.vectors.weight.dtype))  # (batch, width)
        text = torch.repeat_interleave(counts, output_size=len(ids))  # (tokens,): the text of each token
        totals = weights.new_zeros(len(counts)).index_add(0, text, weights)
        return [self._finished(sums, totals)]

    def encode_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        ids = self._rows(ids)
        # `embedding` becomes ONNX's Gather, whose table can be stored in int8
        weights = embedding(ids, self.logits.weight).squeeze(-1).sigmoid() * mask  # (batch, tokens)
        sums = (embedding(ids, self.vectors.weight) * weights.unsqueeze(-1)).sum(1)  # (batch, width)
        return self._finished(sums, weights.sum(1))

    def portable(self, init_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        return {**init_args, "start": None}

    @torch.no_grad()
    def begin(self, sample: Callable[[int], Any]) -> None:
        """Choose the tokens to keep, and take vectors and weights from the encoder ``start``, where these are given.

        Raises:
            ConfigError: when that encoder has fewer tokens or a smaller width.
            TeacherError: when it cannot be loaded.
        """
        if self.start is None and self.kept is None:
            return
        tokens = sample(COUNTED)["tokens"]
        counts = torch.bincount(tokens.values.long(), minlength=self.vocabulary) + 1
        if self.row_of is not None:
            self.row_of.copy_(commonest_rows(tokens, self.vocabulary, len(self.vectors.weight) - 1))
        if self.start is None:
            return
        share = counts.double() / counts.sum()  # (vocabulary,)
        tables = self._components(self.start, share), (COMMON / share).log().unsqueeze(1)
        for part, table in zip((self.vectors, self.logits), tables, strict=True):
            part.weight.copy_(table if self.row_of is None else shared_rows(table, self.row_of.cpu(), counts))

    def _components(self, start: str, share: Tensor) -> Tensor:
        """Principal components of an encoder's tokens by their ``share`` (vocabulary,), of length 1 on average."""
        width = self.vectors.weight.shape[1]
        vectors = _alone(start, self.vocabulary).double()  # (vocabulary, the encoder's width)
        if vectors.shape[1] < width:
            raise ConfigError(f"width is {width}, expected {vectors.shape[1]} at most: {start} is no wider")
        vectors -= share @ vectors
        _, axes = torch.linalg.eigh(vectors.T @ (share.unsqueeze(1) * vectors))  # columns, the weakest first
        vectors = vectors @ axes[:, -width:].flip(1)  # (vocabulary, width)
        out: Tensor = vectors / vectors.square().sum(1).mean().sqrt()
        return out

    def _rows(self, ids: Tensor) -> Tensor:
        """The rows of tokens in both tables, int64, of their shape."""
        return ids if self.row_of is None else self.row_of[ids].long()

    def _finished(self, sums: Tensor, totals: Tensor) -> Tensor:
        """The embedding (batch, dim) of weighted sums of vectors (batch, width) and of weights (batch,)."""
        mean = sums / totals.unsqueeze(1).clamp_min(torch.finfo(totals.dtype).tiny)  # a text without a token: zeros
        out: Tensor = self.project(self.norm(mean))
        return out

    def token_table(self) -> Tensor:
        return self.vectors.weight if self.row_of is None else self.vectors.weight[self.row_of.long()]


class TextStudent(TokenStudent):
    """Any encoder of transformers over token ids.

    Args:
        model: a hub name, a folder that ``save_pretrained`` made, or ``package:NAME/FOLDER``; with ``config``, a model
            type such as ``bert``.
        pretrained: begin with that model's weights rather than random ones.
        config: make a new network with random weights and these keys of the type's configuration, for instance
            ``num_hidden_layers``, ``hidden_size`` and the tokenizer's ``vocab_size``.
        pooling: ``mean`` of the tokens, ``cls`` (the first token) or ``last``.
        dim: width of the embedding, by a linear map; the network's own width when not given.
        layers: begin as these layers of the model, such as ``[0, 5]``, in this order; all of them when not given.
        kept: only so many of the corpus's commonest tokens have a row of their own in the table of tokens; all others share
            one, which begins as their mean by how frequent they are. All have their own when not given.
        unit: divide the embedding by its length, as sentence-transformers' ``Normalize``; for a student in the place
            of a teacher that does so, such as MiniLM.

    Raises:
        ConfigError: when ``config`` does not fit the model type, ``layers`` are not those of the model, or ``kept`` is not
            below its number of tokens.
        TeacherError: when the model cannot be loaded.
    """

    enlarged = "set vocab_size in its config"

    def __init__(
        self,
        model: str,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        pooling: TextPooling = "mean",
        dim: int | None = None,
        layers: list[int] | None = None,
        kept: int | None = None,
        unit: bool = False,
    ):
        super().__init__()
        self.network = _network(model, pretrained, config)
        if layers is not None:
            _keep_layers(self.network, model, layers)
        facts = self.network.config
        if isinstance(pooler := getattr(self.network, "pooler", None), nn.Module):
            pooler.requires_grad_(False)  # its output is not used: DDP would wait for its gradient
        self.pooling, self.padding = pooling, facts.pad_token_id or 0
        self.vocabulary, self.longest = facts.vocab_size, _longest(self.network)
        self._keep(kept)
        if kept is not None:
            self.network.set_input_embeddings(SharedEmbedding(self.network.get_input_embeddings(), kept))
        self.start = model if pretrained and config is None else None
        self.dim = dim or facts.hidden_size
        self.project = nn.Identity() if self.dim == facts.hidden_size else nn.Linear(facts.hidden_size, self.dim)
        self.unit = unit

    def checkpoint_activations(self) -> None:
        self.network.gradient_checkpointing_enable()

    @property
    def widths(self) -> list[int]:
        facts = self.network.config
        return [facts.hidden_size] * (facts.num_hidden_layers - 1) + [self.dim]

    def embeddings(self, rows: dict[str, Ragged]) -> list[Tensor]:
        ids, mask = self._padded(rows["tokens"])
        out = self.network(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        inner = [pool_tokens(hidden, mask, self.pooling) for hidden in out.hidden_states[1:-1]]
        return [*inner, self._embedded(out.last_hidden_state, mask)]

    def encode(self, rows: dict[str, Ragged]) -> Tensor:
        return self.encode_padded(*self._padded(rows["tokens"]))

    def encode_padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._embedded(self.network(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    def _embedded(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The embedding (batch, dim) of the last layer's tokens, (batch, tokens, width)."""
        out: Tensor = self.project(pool_tokens(hidden, mask, self.pooling))
        return nn.functional.normalize(out) if self.unit else out

    def portable(self, init_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        self.network.config.save_pretrained(folder)
        return {**init_args, "model": str(folder), "pretrained": False, "config": None, "layers": None}

    @torch.no_grad()
    def begin(self, sample: Callable[[int], Any]) -> None:
        """Choose the tokens to keep, where their number is given; the others' row becomes the mean of pretrained ones."""
        if self.kept is None:
            return
        table, tokens = self.network.get_input_embeddings(), sample(COUNTED)["tokens"]
        row_of = commonest_rows(tokens, table.tokens, self.kept)
        table.row_of.copy_(row_of)
        if self.start is not None:
            counts = torch.bincount(tokens.values.long(), minlength=table.tokens) + 1
            pretrained = create_network(self.start, pretrained=True).get_input_embeddings().weight
            table.weight.copy_(shared_rows(pretrained, row_of, counts))

    def whole_network(self) -> Any:
        """The network as transformers has it, with a row for every token; the student's own where ``kept`` is not given."""
        if self.kept is None:
            return self.network
        network = copy.deepcopy(self.network)
        network.set_input_embeddings(network.get_input_embeddings().whole())
        return network

    def random_start(self, init_args: Mapping[str, Any]) -> dict[str, Any]:
        new = init_args.get("config") is not None  # then the network is random, whatever `pretrained` says
        return dict(init_args) if new else super().random_start({"pretrained": True, **init_args})

    def token_table(self) -> Tensor:
        table: Any = self.network.get_input_embeddings()
        weight: Tensor = table.weight if self.kept is None else table.whole().weight
        return weight

    def _padded(self, tokens: Ragged) -> tuple[Tensor, Tensor]:
        """Ids (batch, tokens), and a mask that is 0 for padding, else 1."""
        self._check(tokens)
        counts = tokens.counts.unsqueeze(1)  # (batch, 1)
        places = torch.arange(tokens.longest, device=counts.device)
        mask = places < counts
        flat = (counts.cumsum(0) - counts + places).clamp_max(len(tokens.values) - 1)
        ids = torch.where(mask, tokens.values[flat].long(), self.padding)
        return ids, mask.long()


def _alone(model: str, tokens: int) -> Tensor:
    """What an encoder makes of each of its first ``tokens`` tokens alone, between its special tokens: (tokens, width)."""
    encoder: Any = import_class(ENCODER, Teacher)(model)
    encoder.load("cpu")
    if (known := encoder.network.module.config.vocab_size) < tokens:
        raise ConfigError(f"vocabulary is {tokens}, expected {known} at most: {model} knows no more tokens")
    special = encoder.tokenizer("")["input_ids"]
    middle = len(special) // 2
    embedded: Tensor = encoder.embed(
        [{"input_ids": [*special[:middle], token, *special[middle:]]} for token in range(tokens)]
    )
    return nn.functional.normalize(embedded)


class _PaddedEncoder(nn.Module):
    """A student of texts as a function of padded tensors."""

    def __init__(self, student: TokenStudent):
        super().__init__()
        self.student = student

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.student.encode_padded(ids, mask)


def _ids_and_mask(rows: dict[str, Ragged]) -> tuple[Tensor, Tensor]:
    """Ids, and a mask that is 0 for padding, else 1; (batch, tokens) both."""
    ids, counts = rows["tokens"].values.long(), rows["tokens"].counts
    padded = pad_sequence(ids.split(counts.tolist()), batch_first=True)
    return padded, (torch.arange(padded.shape[1]) < counts.unsqueeze(1)).long()


def _longest(network: Any) -> int | None:
    """The most tokens that a network has positions for; RoBERTa's positions begin after that of padding."""
    positions = getattr(getattr(network, "embeddings", None), "position_embeddings", None)
    most: int | None = getattr(network.config, "max_position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    return most if most is None or padding is None else most - padding - 1


def _network(model: str, pretrained: bool, config: dict[str, Any] | None) -> Any:
    if config is None:
        return create_network(model, pretrained)
    stay_local()
    from huggingface_hub.errors import StrictDataclassError  # what transformers raises of an impossible value
    from transformers import AutoConfig, AutoModel

    try:
        usual = AutoConfig.for_model(model)
        if unknown := sorted(set(config) - set(usual.to_dict()) - set(usual.attribute_map)):
            raise ConfigError(f"a {model} has no {', '.join(unknown)} in its configuration")
        return AutoModel.from_config(AutoConfig.for_model(model, **config), trust_remote_code=False)
    except (*UNREADABLE, StrictDataclassError, ArithmeticError, AssertionError, LookupError) as error:
        raise ConfigError(f"no {model} network of this config: {error}") from None


def _keep_layers(network: Any, model: str, layers: list[int]) -> None:
    """Leave a network only some of its layers."""
    count = network.config.num_hidden_layers
    if not layers or not set(layers) <= set(range(count)):
        raise ConfigError(f"layers is {layers}, expected some of 0 to {count - 1}: {model} has {count} layers")
    names = [name for name, part in network.named_modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if len(names) != 1:
        raise ConfigError(f"{model} has no single list of its {count} layers: leave layers out")
    stack = network.get_submodule(names[0])
    network.set_submodule(names[0], nn.ModuleList(stack[number] for number in dict.fromkeys(layers)))
    network.config.num_hidden_layers = len(set(layers))
