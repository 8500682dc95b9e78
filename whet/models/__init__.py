"""Models: loading, adapters, scoring, merging, and a tiny checkpoint built on the spot. Knows no data."""

import os
import warnings

from transformers.utils import logging

# A bar for every shard of every load and checkpoint would bury the progress of the training itself.
logging.disable_progress_bar()
# peft asks transformers for it by its old name; nothing a user of whet can act on.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
# oneDNN keeps a compiled kernel of up to half a megabyte for each shape of a product, 1024 of them. Rows of rounded
# lengths (`whet.models.repeated`) make a few hundred that come again, and others that do not.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
