"""The engines: machines as processes of this host, as real QEMUs, or as objects under virtual time."""
