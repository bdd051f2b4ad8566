"""Images in, predictions out, and the routines between."""
