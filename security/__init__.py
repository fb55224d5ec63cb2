"""The only code that resolves user paths, opens foreign files, the network or a child process. Imports no torch."""
