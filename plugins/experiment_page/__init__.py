"""An experiment's report as an HTML page with plots: ``recsys experiment page``."""
