"""The vocabulary that all stages share: geometry, boxes, labels, rasters, annotations, and the file contracts between stages.

Nothing here imports TensorFlow or Beam, and nothing here imports a stage.
"""
