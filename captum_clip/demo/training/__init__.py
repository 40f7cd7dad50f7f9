"""What made the embedded models: ``python -m captum_clip.demo.training``.

Training, export and the figures of the model cards; nothing in the package needs it at run time.
"""
