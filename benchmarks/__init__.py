"""Benchmarks: each module's ``run`` measures something beside its reference, in one process, and returns rows."""
