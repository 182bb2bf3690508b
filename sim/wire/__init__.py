"""The protocol on real sockets: the server, a machine's end of it, and who stands in between."""
