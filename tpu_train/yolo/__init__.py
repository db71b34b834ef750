"""YOLO's targets and losses, made inside the compiled step."""
