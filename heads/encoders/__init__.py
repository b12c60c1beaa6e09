"""Encoders that can be trained: plug-ins, one class of :class:`heads.encoder.EncoderModule` a file."""
