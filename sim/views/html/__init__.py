"""A run as one HTML page: tables, charts, and their SVG."""
