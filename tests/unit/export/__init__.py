"""Tests of `lightning export`."""
