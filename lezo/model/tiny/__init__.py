"""The model `tiny`: an OPT of half a million parameters that this project pretrains on text of its own."""
