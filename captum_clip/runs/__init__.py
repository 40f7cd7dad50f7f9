"""One engine for everything that is long: units of work, their files, resume, local and Ray."""

from .engine import ENGINES, Advance, Engine, EngineName, Save, Worker, check_engine, threads
from .model_loader import ModelLoader, full_name, given_parts, label_of
from .run import Progress, compute_missing
from .storage import Storage, storage_of
from .units import AGAIN, Arrays, Unit, read_unit, slug, to_csv, to_npz

__all__ = [
    "AGAIN",
    "ENGINES",
    "Advance",
    "Arrays",
    "Engine",
    "EngineName",
    "ModelLoader",
    "Progress",
    "Save",
    "Storage",
    "Unit",
    "Worker",
    "check_engine",
    "compute_missing",
    "full_name",
    "given_parts",
    "label_of",
    "read_unit",
    "slug",
    "storage_of",
    "threads",
    "to_csv",
    "to_npz",
]
