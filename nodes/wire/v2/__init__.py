"""The wire of ivshmem version 2: framed messages of three types, a client and a server."""
