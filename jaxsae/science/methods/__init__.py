"""One file per method: its paper's headline in miniature."""
