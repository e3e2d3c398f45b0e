"""The device that sysfs.py looks at."""

import asyncio

from recuse import Device, File, OpenRequest


class Probe(Device):
    """Nobody gets an answer to a read."""

    name = "snd/probe"
    major = 240
    minor = 7

    def open(self, request: OpenRequest) -> File:
        return ProbeFile()


class ProbeFile(File):
    async def read(self, size: int, offset: int) -> bytes:
        await asyncio.sleep(3600)
        return b""
