"""Reads TensorBoard's event files without TensorBoard."""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c


def events(folder: Path) -> list[Any]:
    """Return the events in the only event file of a folder. A record is its length, the length's
    checksum, the event, and the event's checksum."""
    (file,) = folder.glob("events.out.tfevents.*")
    content, found = file.read_bytes(), []
    while content:
        length, check = struct.unpack("<QI", content[:12])
        data, content = content[12 : 12 + length], content[12 + length :]
        assert check == masked_crc32c(struct.pack("<Q", length))
        assert content[:4] == struct.pack("<I", masked_crc32c(data))
        content = content[4:]
        found.append(Event.FromString(data))
    return found


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the steps and values of each scalar, in the order of writing."""
    found = defaultdict(list)
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag].append((event.step, round(value.simple_value, 5)))
    return dict(found)


def hparams(folder: Path) -> list[Any]:
    """Return the data for the page HPARAMS: a root's experiment, or a trial's begin and end."""
    return [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events(folder)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
