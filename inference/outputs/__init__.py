"""Detections in the formats of other tools: `inference.outputs.writing` writes them, one module a format does the work.

The table of record is `detections.parquet` (survey.detections); everything here can be made again from it. docs/outputs.md says
what each file holds and which tool opens it.
"""
