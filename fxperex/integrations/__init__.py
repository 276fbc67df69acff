"""Private training inside other people's loops. Each module imports its library when it is used."""
