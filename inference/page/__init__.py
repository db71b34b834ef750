"""The parts of the report's page: rows, maps, charts, pictures, and the data that its script reads."""
