"""Corpora: one file each, see :mod:`featcache.corpus`."""
