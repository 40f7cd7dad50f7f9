"""The training, the export and the figures of the embedded models; see `demo_models.py`."""
