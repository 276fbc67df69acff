"""What `fxperex train` runs: a small network trained privately, and the data sets for it."""
