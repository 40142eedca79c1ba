"""The images: datasets with fingerprints, their sources, augmentation, and image files."""
