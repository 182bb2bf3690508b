"""The protocol on real sockets: the server, a machine's connection, proxy and replayer."""
