"""Rows to examples to packed batches of tokens; knows no weights."""
