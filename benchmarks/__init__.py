"""What `make bench` runs: the engine against a plain port of the paper's formula."""
