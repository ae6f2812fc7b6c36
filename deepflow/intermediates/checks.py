"""The check sum of frames and chunks: zlib's CRC-32, several times as fast (python-isal)."""

from isal.isal_zlib import crc32

__all__ = ["crc32"]
