"""Which stream of a film is shown, and its pictures with their moments, in seconds from the first one.

Moments are presentation time stamps, wherever they begin; AVI has none, so there the order of decoding's output counts.
Pictures that an edit list leaves out are not shown. Interlaced pictures are deinterlaced (bwdif, one picture for two
fields), as televisions do. Alpha in WebM needs libvpx's decoders, for ffmpeg's own leave it out.
Not read: a container's own cropping (clean aperture, Matroska's PixelCrop), which PyAV doesn't hand on.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import av
from av.stream import Disposition

from dollar.data.listed import NotShown

HIDDEN = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
INDEXED = ("mov", "matroska")  # formats whose header tells truly where the first picture lies
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
JUMP = 1.0  # seconds that time may go back from one packet to the next


class Extent(NamedTuple):
    """Seconds from the first picture to the last, and between two of them on average."""

    last: float
    interval: float


def shown_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video that a player shows: not a cover; the default one of several, the largest of those, the first."""
    shown = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & HIDDEN]
    if not shown:
        covers = "a cover, but no film" if container.streams.video else "sound only?"
        raise NotShown("no video stream", f"has no video stream ({covers})")
    return max(shown, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))


def extent(container: av.container.InputContainer) -> Extent:
    """How long a film is and how fast: by its index and its last packets, or else by all of its packets.

    An index may be older than a file that was cut off, and a header's rate is an average of what an edit list leaves
    out too, so neither is believed alone.
    """
    stream = shown_stream(container)
    unit = _unit(stream)
    listed = [e.timestamp for e in stream.index_entries if not e.is_discard] if stream.frames else []
    if len(listed) >= stream.frames // 2 > 0 and container.format.name.startswith("mov"):
        first = _origin(container, stream)
        container.seek(max(listed), stream=stream)
        end = _moments(container, stream)
        if end and max(end) >= max(listed):  # a picture is shown when it is decoded, or later
            last = float((max(end) - first) * unit)
            return Extent(last, last / max(1, len(listed) - 1))
        container.seek(0)
    moments = _moments(container, stream)
    if not moments:
        raise ValueError("it has no time stamps")
    last = float((max(moments) - min(moments)) * unit)
    return Extent(last, last / max(1, len(moments) - 1))


def pictures(container: av.container.InputContainer, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds from the first picture, frame), from a key frame on that is at or before `start`, if the index is right.

    Raises ValueError for a damaged picture, NotShown where time goes back.
    """
    stream = shown_stream(container)
    unit = _unit(stream)
    origin = _origin(container, stream) if start > 0 else None
    if origin is not None:
        container.seek(origin + int(start / unit), stream=stream)
    before, interval = None, 0.0
    for frame in _deinterlaced(_decoded(container, stream), stream):
        if frame.is_corrupt:
            raise ValueError("a damaged picture")
        stamp = _stamp(container, frame)
        if stamp is None:
            if before is None:
                raise ValueError("no time stamps")
            now = before + interval
        else:
            origin = stamp if origin is None else origin
            now = float((stamp - origin) * unit)
        if before is not None:
            if now < before - JUMP:
                raise _goes_back()
            interval = max(now - before, 0.0)
        before = now
        yield now, frame


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decoded pictures from the first key frame on; what lies before it lacks the pictures that it changes."""
    decoder: av.CodecContext = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
        decoder = av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
        decoder.extradata = stream.codec_context.extradata
    begun = False
    for packet in container.demux(stream):
        begun = begun or packet.is_keyframe
        if begun:
            yield from decoder.decode(packet)  # type: ignore[attr-defined]  # of pictures and sounds alike


def _deinterlaced(frames: Iterator[av.VideoFrame], stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The same pictures, interlaced ones as whole ones; the filter waits for the next picture, as motion needs it."""
    first = next(frames, None)
    if first is None:
        return
    if not first.interlaced_frame:
        yield first
        yield from frames
        return
    graph = av.filter.Graph()
    source = graph.add_buffer(template=stream, time_base=stream.time_base)
    graph.link_nodes(source, graph.add("bwdif", "send_frame:auto:interlaced"), graph.add("buffersink")).configure()
    yield from _filtered(graph, first)
    for frame in frames:
        yield from _filtered(graph, frame)
    yield from _filtered(graph, None)


def _filtered(graph: av.filter.Graph, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
    """What the graph gives when it has got this picture, or its last ones."""
    graph.vpush(frame)
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return


def _moments(container: av.container.InputContainer, stream: av.VideoStream) -> list[int]:
    """The time stamps of the packets from here to the end; NotShown where they go back."""
    packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
    decoded = [p.dts for p in packets if p.dts is not None]
    if any((b - a) * _unit(stream) < -JUMP for a, b in pairwise(decoded)):
        raise _goes_back()
    shown = [p.pts for p in packets if p.pts is not None]
    return decoded if _by_order(container) or not shown else shown


def _stamp(container: av.container.InputContainer, frame: av.VideoFrame) -> int | None:
    """When a picture is shown, in the stream's unit."""
    if _by_order(container):
        return frame.dts
    return frame.pts if frame.pts is not None else frame.dts


def _by_order(container: av.container.InputContainer) -> bool:
    return container.format.name == "avi"


def _origin(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """The first picture's time stamp: a header's, or what decoding gives first (streams may be cut anywhere)."""
    if container.format.name.startswith(INDEXED) and stream.start_time is not None:
        return stream.start_time
    first = next(_decoded(container, stream), None)
    stream.codec_context.flush_buffers()
    stamp = None if first is None else _stamp(container, first)
    if stamp is None:
        raise ValueError("no time stamps")
    return stamp


def _unit(stream: av.VideoStream) -> float:
    if not stream.time_base:
        raise ValueError("no time stamps")
    return float(stream.time_base)


def _goes_back() -> NotShown:
    advice = "join its parts anew, for instance with ffmpeg's concat filter"
    return NotShown("time goes back", f"has time stamps that go back, as files that were glued together have; {advice}")
