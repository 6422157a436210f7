"""Where samples come from: the shapes world, clips, prompts, shards and mixtures of them."""

from typing import TYPE_CHECKING

from dollar.lazy import lazily

if TYPE_CHECKING:
    from dollar.data.buckets import Bucket
    from dollar.data.clips import ClipFolder
    from dollar.data.latents import Batch, Fit, LatentBatches, Samples
    from dollar.data.listed import Entry, Skipped, Source
    from dollar.data.mixture import Mixture
    from dollar.data.preferred import Pairs, pairs_of
    from dollar.data.prompts import PromptData, read_prompts
    from dollar.data.shapes import ShapesClips
    from dollar.data.shard_format import StoredClip
    from dollar.data.shard_writer import ShardWriter
    from dollar.data.shards import Shards
    from dollar.data.sources import open_source
    from dollar.data.stored import LatentShards, StoredText, mixture_of
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "Batch",
    "Bucket",
    "ClipFolder",
    "Entry",
    "Fit",
    "LatentBatches",
    "LatentShards",
    "Mixture",
    "Pairs",
    "PromptData",
    "Samples",
    "ShapesClips",
    "ShardWriter",
    "Shards",
    "Skipped",
    "Source",
    "StoredClip",
    "StoredText",
    "mixture_of",
    "open_source",
    "pairs_of",
    "read_prompts",
]
