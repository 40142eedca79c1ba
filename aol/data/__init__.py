"""The images: where they come from, their fingerprints, and the training augmentation."""
