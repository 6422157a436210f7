"""Which stream of a film is shown, and its pictures with their moments, in seconds from the first one.

Moments are presentation time stamps, wherever they begin; AVI has none, so there the order of decoding's output counts.
Pictures that an edit list leaves out are not shown. Interlaced pictures are deinterlaced (bwdif, one picture for two
fields), as televisions do. Alpha in WebM needs libvpx's decoders, for ffmpeg's own leave it out.
Not read: a container's own cropping (clean aperture, Matroska's PixelCrop), which PyAV doesn't hand on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import av
from av.stream import Disposition

from dollar.data.listed import NotShown

HIDDEN = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
THUMBNAILS = ("mjpeg", "png", "bmp")
INDEXED = ("mov", "matroska")  # formats whose header tells truly where the first picture lies
UNTIMED = ("mpeg", "mpegvideo")  # few pictures have a time stamp: right from the beginning only, so there is no seeking
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
JUMP = 1.0  # seconds that time may go back from one packet to the next


class Extent(NamedTuple):
    """Seconds from the first picture to the last, and between two of them on average."""

    last: float
    interval: float


def shown_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video that a player shows: of several that are no covers the default one, of these the largest, the first.

    A stream of pictures (mjpeg, png) is a film only where there is no other, for cameras put previews into them.
    """
    streams = container.streams.video
    if not streams and not container.streams.audio:
        raise ValueError("it lists neither pictures nor sound; was it cut off?")
    if not streams:
        raise NotShown("no video stream", "has no video stream (sound only?)")
    moving = [s for s in streams if s.codec_context is None or not s.disposition & HIDDEN]
    if not moving:
        raise NotShown("no video stream", "has no video stream (a cover, but no film)")
    shown = [s for s in moving if s.codec_context is not None]
    if not shown:
        raise NotShown("unknown codec", "is of a codec that can't be decoded here; convert it, for instance to H.264")

    def rank(stream: av.VideoStream) -> tuple[bool, bool, int]:
        default = bool(stream.disposition & Disposition.default)
        return stream.codec_context.name not in THUMBNAILS, default, stream.width * stream.height

    return max(shown, key=rank)


def extent(container: av.container.InputContainer) -> Extent:
    """How long a film is and how fast: by its index and its last packets, or else by all of its packets.

    An index may be older than a file that was cut off, and a header's rate is an average of what an edit list leaves
    out too, so neither is believed alone.
    """
    stream = shown_stream(container)
    unit = _unit(stream)
    listed = [e.timestamp for e in stream.index_entries if not e.is_discard] if stream.frames else []
    if _listed(container) and stream.start_time is not None and listed:
        container.seek(max(listed), stream=stream)
        end = [p.pts for p in _packets(container, stream) if p.pts is not None and not p.is_discard]
        if end and max(end) >= max(listed):  # the last picture is shown when it is decoded, or later
            last = (max(end) - stream.start_time) * unit
            return Extent(last, last / max(1, len(listed) - 1))
        container.seek(min(listed), stream=stream)
    return _counted(container, stream, unit)


def _counted(container: av.container.InputContainer, stream: av.VideoStream, unit: float) -> Extent:
    """The extent by all packets, from the first picture that can be decoded."""
    stamps: list[int | None] = []
    order: list[int] = []

    def noted() -> Iterator[av.Packet[av.VideoStream]]:
        for packet in _packets(container, stream):
            if not packet.is_discard:
                stamps.append(_stamp(container, packet))
            if packet.dts is not None:
                order.append(packet.dts)
            yield packet

    packets = noted()
    first = next(_decoded(packets, stream), None)
    for _ in packets:  # the others need not be decoded
        pass
    if any((after - before) * unit < -JUMP for before, after in pairwise(order)):
        raise _goes_back()
    moments = [stamp for stamp in stamps if stamp is not None]
    if first is None:
        raise ValueError("it holds no whole picture")
    begin = _stamp(container, first)
    if not moments or begin is None:
        raise ValueError("it has no time stamps")
    if _by_order(container):  # a picture's stamp is then that of the packet after which it was decoded
        begin = min(moments)
    moments = [stamp for stamp in moments if stamp >= begin] or [begin]
    last = (max(moments) - begin) * unit
    return Extent(last, last / max(1, len(moments) - 1))


def pictures(container: av.container.InputContainer, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds from the first picture, frame), from a key frame on that is at or before `start`, if the index is right.

    Raises ValueError for a damaged picture, NotShown where time goes back.
    """
    stream = shown_stream(container)
    unit = _unit(stream)
    begin = None
    if start > 0 and container.format.name not in UNTIMED:
        origin = _origin(container, stream)
        container.seek(origin + int(start / unit), stream=stream)
        begin = origin * unit
    before, interval = None, 0.0
    for frame in _deinterlaced(_decoded(_packets(container, stream), stream), stream):
        if frame.is_corrupt:
            raise ValueError("a damaged picture")
        stamp = _stamp(container, frame)
        if stamp is None:
            if before is None:
                raise ValueError("no time stamps")
            now = before + interval
        else:
            seconds = stamp * (float(frame.time_base) if frame.time_base else unit)  # the filter's unit is another
            begin = seconds if begin is None else begin
            now = seconds - begin
        if before is not None:
            if now < before - JUMP:
                raise _goes_back()
            interval = max(now - before, 0.0)
        before = now
        yield now, frame


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet[av.VideoStream]]:
    """The packets from here to the end, but for one that isn't whole where the file was cut off."""
    for packet in container.demux(stream):
        if not (packet.is_corrupt and _listed(container)):
            yield packet


def _decoded(packets: Iterable[av.Packet[av.VideoStream]], stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Decoded pictures from the first key frame on; what lies before it lacks the pictures that it changes."""
    decoder: av.CodecContext = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
        decoder = av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
        decoder.extradata = stream.codec_context.extradata
    begun = False
    for packet in packets:
        begun = begun or packet.is_keyframe
        if begun:
            yield from decoder.decode(packet)  # type: ignore[attr-defined]  # of pictures and sounds alike


def _deinterlaced(frames: Iterator[av.VideoFrame], stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The same pictures, interlaced ones as whole ones; the filter waits for the next picture, as motion needs it."""
    graph: av.filter.Graph | None = None
    for frame in frames:
        if graph is None and frame.interlaced_frame:
            graph = av.filter.Graph()
            nodes = graph.add_buffer(template=stream), graph.add("bwdif", "send_frame:auto:interlaced")
            graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        yield from [frame] if graph is None else _filtered(graph, frame)
    if graph is not None:
        yield from _filtered(graph, None)


def _filtered(graph: av.filter.Graph, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
    """What the graph gives when it has got this picture, or its last ones."""
    graph.vpush(frame)
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return


def _stamp(container: av.container.InputContainer, part: av.VideoFrame | av.Packet[av.VideoStream]) -> int | None:
    """When a picture is shown, in the stream's unit."""
    return part.dts if part.pts is None or _by_order(container) else part.pts


def _listed(container: av.container.InputContainer) -> bool:
    """Whether it is of QuickTime's family, whose header lists every packet."""
    return container.format.name.startswith("mov")


def _by_order(container: av.container.InputContainer) -> bool:
    return container.format.name == "avi"


def _origin(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """The first picture's time stamp: a header's, or what decoding gives first (streams may be cut anywhere)."""
    if container.format.name.startswith(INDEXED) and stream.start_time is not None:
        return stream.start_time
    first = next(_decoded(_packets(container, stream), stream), None)
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
