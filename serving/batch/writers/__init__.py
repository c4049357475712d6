"""Writers: one file for each format; `registry` knows them."""
