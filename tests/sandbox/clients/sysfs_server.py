"""The device that sysfs.py looks at."""

import asyncio

from recuse import Device, File


class Probe(Device):
    """Nobody gets an answer to a read."""

    name = "snd/probe"
    major = 240
    minor = 7

    def open(self, request):
        return ProbeFile()


class ProbeFile(File):
    async def read(self, size, offset):
        await asyncio.sleep(3600)
        return b""
