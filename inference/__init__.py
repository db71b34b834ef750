"""Model and mosaics to detections, counts, metrics and a report."""
