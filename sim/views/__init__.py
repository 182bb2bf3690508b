"""Results for people and for other programs: terminal, notebook, plots, HTML, Perfetto, Prometheus, JUnit, graphs."""
