"""Captioned clips to shards: what is left of a source, the folder that it goes to, and the report on it."""

from dollar.data.encoding.edits import forget_edited
from dollar.data.encoding.folder import begin, check_apart, check_buckets, fingerprint_of
from dollar.data.encoding.report import read_stored, report_on
from dollar.data.encoding.work import Encoding, EncodingSettings

__all__ = [
    "Encoding",
    "EncodingSettings",
    "begin",
    "check_apart",
    "check_buckets",
    "fingerprint_of",
    "forget_edited",
    "read_stored",
    "report_on",
]
