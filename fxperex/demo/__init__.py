"""The demonstration behind `fxperex train`, and the data sets that it can use."""
