"""Published Bunny checkpoints (BAAI-DCAI/Bunny) in and out of the Hugging Face LLaVA layout."""

from warren.models.bunny.exporter import export_bunny
from warren.models.bunny.families import FAMILIES, Family
from warren.models.bunny.importer import Checkpoint, import_bunny, is_bunny, read_checkpoint

__all__ = ["FAMILIES", "Checkpoint", "Family", "export_bunny", "import_bunny", "is_bunny", "read_checkpoint"]
