"""What a release has to pass: `python -m release`."""
