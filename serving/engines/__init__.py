"""Engines: one file each; `registry` knows them, `choose` picks one."""
