"""Streams: one file each, see :mod:`featcache.stream`."""
