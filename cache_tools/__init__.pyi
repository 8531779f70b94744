from .arguments import PACKAGED, CommandParser, choose_command, read_configurations, suggestion, with_packaged
from .building.column import Settings
from .building.corpus import add_column, add_columns, build, build_like, check_column_name
from .building.launch import choose_device
from .building.pipeline import Pipeline
from .cluster import Cluster, Resources
from .console import MESSAGES, shows_bars, start_console, start_logging
from .corpora.base import Corpus, Items
from .corpora.choose import as_corpus, column_of, is_table
from .corpora.idx import IdxImages, read_idx
from .corpora.image import ImageFolder
from .corpora.molecule import RdkitSamples, SmilesFile
from .corpora.rows import read_rows
from .corpora.tables import TABLES, file_ending, read_table
from .corpora.text import TextFile
from .errors import (
    BadItem,
    CacheError,
    ConfigError,
    CorpusError,
    QuorumError,
    TeacherError,
    TrainingError,
    above_zero,
    install_hint,
)
from .format.files import sha256, write_file
from .format.opening import open, open_mirror
from .format.packing import Ragged
from .format.reader import Aligned, Column, aligned, open_column
from .format.stack import Selection
from .format.statistics import Statistics
from .format.store import CORPUS, MANIFEST, TASKS, list_columns, read_corpus, read_item, read_items, read_manifest
from .hub import UNREADABLE, create_network, first_line, locate, read_safetensors, stay_local
from .inputs import EncodedImage, Featuriser, MoleculeGraph, Pixels, TokenIds
from .interrupt import INTERRUPTED, Interruptible, InterruptibleCall
from .items.image import decode_image
from .items.molecule import parse_smiles
from .items.raw import item_bytes
from .machine import bf16_instructions, cores, flush_denormals, threads
from .moved import current_class_path
from .producer import (
    Recorded,
    as_json,
    class_path,
    import_class,
    library_versions,
    rebuild,
    refuse_remote_code,
    require_same,
)
from .teachers.backbones import BACKBONES, Backbone
from .teachers.base import Teacher, Tunable
from .teachers.network import Network, TextPooling, pool_tokens, weights_sha256
from .teachers.specialist import as_tunable, teacher_facts, write_specialist

__version__: str

__all__ = [
    "BACKBONES",
    "CORPUS",
    "INTERRUPTED",
    "MANIFEST",
    "MESSAGES",
    "PACKAGED",
    "TABLES",
    "TASKS",
    "UNREADABLE",
    "Aligned",
    "Backbone",
    "BadItem",
    "CacheError",
    "Cluster",
    "Column",
    "CommandParser",
    "ConfigError",
    "Corpus",
    "CorpusError",
    "EncodedImage",
    "Featuriser",
    "IdxImages",
    "ImageFolder",
    "Interruptible",
    "InterruptibleCall",
    "Items",
    "MoleculeGraph",
    "Network",
    "Pipeline",
    "Pixels",
    "QuorumError",
    "Ragged",
    "RdkitSamples",
    "Recorded",
    "Resources",
    "Selection",
    "Settings",
    "SmilesFile",
    "Statistics",
    "Teacher",
    "TeacherError",
    "TextFile",
    "TextPooling",
    "TokenIds",
    "TrainingError",
    "Tunable",
    "above_zero",
    "add_column",
    "add_columns",
    "aligned",
    "as_corpus",
    "as_json",
    "as_tunable",
    "bf16_instructions",
    "build",
    "build_like",
    "check_column_name",
    "choose_command",
    "choose_device",
    "class_path",
    "column_of",
    "cores",
    "create_network",
    "current_class_path",
    "decode_image",
    "file_ending",
    "first_line",
    "flush_denormals",
    "import_class",
    "install_hint",
    "is_table",
    "item_bytes",
    "library_versions",
    "list_columns",
    "locate",
    "open",
    "open_column",
    "open_mirror",
    "parse_smiles",
    "pool_tokens",
    "read_configurations",
    "read_corpus",
    "read_idx",
    "read_item",
    "read_items",
    "read_manifest",
    "read_rows",
    "read_safetensors",
    "read_table",
    "rebuild",
    "refuse_remote_code",
    "require_same",
    "sha256",
    "shows_bars",
    "start_console",
    "start_logging",
    "stay_local",
    "suggestion",
    "teacher_facts",
    "threads",
    "weights_sha256",
    "with_packaged",
    "write_file",
    "write_specialist",
]
