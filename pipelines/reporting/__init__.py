"""The parts of the report: what a run folder holds beside scores, figures, and what the page says of a run."""
