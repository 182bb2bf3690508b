"""What one shows to others: a run as an HTML page (``page``), as a trace (``trace``), as metrics (``exposition``)."""
