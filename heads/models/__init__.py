"""Head plug-ins: one file each, see :mod:`heads.head`."""
