"""The topology file: its tables, the values they take, where each stands, and what is wrong with them."""
