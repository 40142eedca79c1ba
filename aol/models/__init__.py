"""The paper's four architectures, the widths they can have, and their cost in operations."""
