"""Tests of `lightning batch-predict`."""
