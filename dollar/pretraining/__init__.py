"""Training of the embedded models: the autoencoder, the teacher and CLIP of the shapes world."""

from dollar.pretraining.autoencoder import new_autoencoder, train_autoencoder
from dollar.pretraining.clip import new_clip, save_clip, train_clip
from dollar.pretraining.teacher import (
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_transformer,
    save_pipeline,
    train_teacher,
)

__all__ = [
    "new_autoencoder",
    "new_clip",
    "new_scheduler",
    "new_text_encoder",
    "new_tokenizer",
    "new_transformer",
    "save_clip",
    "save_pipeline",
    "train_autoencoder",
    "train_clip",
    "train_teacher",
]
