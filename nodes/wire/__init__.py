"""The client-server protocol: its messages, a machine's side of it, a coordinator's."""
