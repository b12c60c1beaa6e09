"""Aligners, one a file; see :mod:`featcache.aligner`."""
