"""Decoding, geometry, masks and drawing, shared by training and serving."""
