"""Bytes in, answers out: the inference side, without lightning."""
