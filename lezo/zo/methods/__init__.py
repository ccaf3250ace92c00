"""The parts of zeroth-order methods beyond MeZO and LeZO, one file a part, each citing what it follows."""
