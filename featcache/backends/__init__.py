"""Backends: how one part is written and read, see :mod:`featcache.backend`."""
